"""What can be done to a service, each with what has to be undone or repaired afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos.traffic import Traffic
from tests.deploy.serving import Service
from tests.end_to_end.deployment import wait_until

_PARTS = ("tritonserver", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
_WHOLE_SECONDS = 180.0
_LOOK_SECONDS = 3.0
_MOMENT_SECONDS = 0.7
_FILLER, _FILLER_BYTES = "filler", 2**20


class Blows:
    """Deals them."""

    def __init__(self, service: Service, traffic: Traffic, chance: random.Random, *, disk: bool) -> None:
        """`disk`: the service's folder is a file system of its own, which may be filled up."""
        self._service, self._traffic, self._chance = service, traffic, chance
        self._kinds: list[Callable[[], str]] = [
            *(self._kill_part, self._kill_part, self._stop_part, self._stop_part),
            *(self._kill_serve, self._pause_serve, self._kill_client, self._stop_client),
            *([self._fill_disk, self._die_on_a_full_disk] if disk else []),
        ]
        self._deck: list[Callable[[], str]] = []

    def deal(self) -> str:
        """One at random; what it was. All kinds come before one comes again."""
        # A stopped part that is not missed is noticed later than the service is found to answer.
        wait_until(lambda: self._service.is_whole(_PARTS), "the server has all its parts", _WHOLE_SECONDS)
        if not self._deck:
            self._deck = self._chance.sample(self._kinds, len(self._kinds))
        return self._deck.pop()()

    def _part(self) -> tuple[str, int]:
        name = self._chance.choice(("guard", *_PARTS))
        return name, self._service.guard() if name == "guard" else self._service.one(name).pid

    def _kill_part(self) -> str:
        name, pid = self._part()
        _send(pid, signal.SIGKILL)
        return f"SIGKILL to {name}"

    def _stop_part(self) -> str:
        name, pid = self._part()
        _send(pid, signal.SIGSTOP)
        if name == "guard":  # which does nothing that anybody would miss, until `serve` ends
            time.sleep(_LOOK_SECONDS)
            _send(pid, signal.SIGCONT)
        return f"SIGSTOP to {name}"

    def _kill_serve(self) -> str:
        self._service.process.kill()
        self._service.process.wait()
        self._service.start()  # as whoever runs services does
        return "SIGKILL to serve"

    def _pause_serve(self) -> str:
        _send(self._service.process.pid, signal.SIGSTOP)
        time.sleep(_LOOK_SECONDS)
        _send(self._service.process.pid, signal.SIGCONT)
        return "SIGSTOP to serve, and SIGCONT"

    def _kill_client(self) -> str:
        self._traffic.replace(self._chance.choice(self._traffic.victims))
        return "SIGKILL to a client"

    def _stop_client(self) -> str:
        victim = self._chance.choice(self._traffic.victims)
        victim.send_signal(signal.SIGSTOP)
        time.sleep(_LOOK_SECONDS)
        self._traffic.replace(victim)
        return "SIGSTOP to a client, and SIGKILL"

    def _fill_disk(self) -> str:
        with _full(self._service.folder):
            self._service.wait_until_it_answers()
            time.sleep(_LOOK_SECONDS)
            self._service.wait_until_it_answers()
        return "disk full"

    def _die_on_a_full_disk(self) -> str:
        with _full(self._service.folder):
            _send(self._service.one("tensorrt_llm").pid, signal.SIGKILL)
            time.sleep(_MOMENT_SECONDS)
            _fill(self._service.folder)  # also what the dead server has left free
            time.sleep(_LOOK_SECONDS)
        return "disk full, and SIGKILL to tensorrt_llm"


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def _full(folder: Path) -> Iterator[None]:
    _fill(folder)
    try:
        yield
    finally:
        (folder / _FILLER).unlink()


def _fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / _FILLER).open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * _FILLER_BYTES)
