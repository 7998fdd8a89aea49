"""How often a server that dies again and again is started again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.server import ServerDied, TritonError
from deploy.supervise import supervise
from tests.deploy.stand_in_server import StandIn


class Lives:
    """Servers, one after the other, that are killed some seconds after they were ready; None: it does not become ready.

    Attributes:
        now: time on a clock of their own.
        pauses: seconds before each new start.
    """

    def __init__(self, log: Path, *seconds: float | None) -> None:
        self.now, self.pauses = 0.0, list[float]()
        self._log, self._seconds = log, iter(seconds)

    @contextmanager
    def run(self) -> Iterator[StandIn]:
        seconds = next(self._seconds, 0.0)
        if seconds is None:
            raise TritonError("no room")
        with StandIn(self._log) as server:
            server.wait_until_ready()
            os.kill(server.session, signal.SIGKILL)
            try:
                yield server
            finally:
                self.now += seconds

    def pause(self, seconds: float) -> None:
        """Until the operator ends it."""
        self.pauses.append(seconds)
        if len(self.pauses) == 7:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("seconds", "pauses", "end"),
    [
        ([0, 0.2, 0, 0, 0, 0, 0], [1, 5, 15, 15, 15, 15, 15], KeyboardInterrupt),
        ([60, 60, 0, 0, 60, 0, 60], [1, 1, 5, 15, 1, 5, 1], KeyboardInterrupt),
        ([60, None, None, None], [1, 5, 15], ServerDied),
        ([0, None, 0, None, None, 0, 60], [1, 5, 15, 15, 15, 15, 1], KeyboardInterrupt),
        ([None], [], TritonError),
    ],
)
def test_it_waits_the_longer_the_less_a_new_start_has_helped(
    seconds: list[float | None],
    pauses: list[float],
    end: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives = Lives(tmp_path / "log", *seconds)
    monkeypatch.setattr(
        "deploy.supervise.time", SimpleNamespace(monotonic=lambda: lives.now, sleep=lives.pause)
    )
    with pytest.raises(end):
        supervise(lives.run, on_failure="restart", silence_seconds=60, tell=lambda line: None)
    assert lives.pauses == pauses
