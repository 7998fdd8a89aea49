"""`drafthouse serve` on a tiny random model, as a user starts it, and what is seen of it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from deploy.metrics import running_requests
from deploy.processes import Process, find, of_session
from tests.end_to_end.deployment import wait_until, write_target
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
PATIENCE = 180.0


class Service:
    """A running `drafthouse serve`.

    Attributes:
        folder: its working directory.
        temporary: its directory for temporary files.
        process: it.
    """

    def __init__(
        self, folder: Path, engine: Mapping[str, Any] = MappingProxyType({}), **serving: Any
    ) -> None:
        """Write its spec; `engine` adds to that section, `serving` is the section, ports aside."""
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        ports = {"http_port": self.http_port, "grpc_port": self.grpc_port, "metrics_port": self.metrics_port}
        target = write_target(folder / "target", "byte-level")
        spec = {
            "name": "tiny",
            "target": {"model": str(target)},
            "engine": {
                "precision": "fp32",
                "max_batch_size": 4,
                "max_sequence_length": 8192,
                "threads": 1,
                **engine,
            },
            "speculation": {"method": "anpd", "draft_length": 4, "ngram": 3},
            "serving": {**ports, **serving},
        }
        (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
        self.told: list[str] = []
        self.places: set[str] = set()

    def start(self) -> None:
        """Start it, and return when it is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "spec.yaml"],
            cwd=self.folder, env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_until_it_answers(60)

    def wait_until_it_answers(self, seconds: float = PATIENCE) -> None:
        """Return when it gives tokens; its place is then known."""
        wait_until(lambda: self.answers() or self.process.poll() is not None, "it answers", seconds)
        assert self.process.poll() is None, self.output
        self.remember_places()

    def remember_places(self) -> None:
        """Note what the running server's place is called, to look for it when it should be gone."""
        self.places |= {path.name for path in self.temporary.glob("drafthouse_*") if path.is_dir()}

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, by that signal; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.status()

    def status(self) -> int:
        """Its exit status, when it has ended."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    @property
    def output(self) -> str:
        """What it has printed."""
        return "".join(self.told)

    def ask(self, max_tokens: int = 4, seconds: float = PATIENCE) -> dict[str, Any]:
        """One answer; raises what `urllib` raises."""
        body = json.dumps({"text_input": "one two three", "max_tokens": max_tokens}).encode()
        address = f"http://127.0.0.1:{self.http_port}/v2/models/ensemble/generate"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def answers(self) -> bool:
        """Whether it gives a token."""
        try:
            return bool(self.ask(seconds=2.0)["text_output"])
        except (urllib.error.URLError, OSError):
            return False

    def running(self) -> int:
        """Requests that the engine has."""
        return running_requests(f"http://127.0.0.1:{self.metrics_port}/metrics") or 0

    def guard(self) -> int:
        """Number of the process between `serve` and the server, which begins a session."""
        (guard,) = self._guards()
        return guard

    def server(self) -> list[Process]:
        """The processes of the server, and the guard."""
        return of_session(self.guard())

    def one(self, name: str) -> Process:
        """The process of the server with that program, or of the stub with that model."""
        found = _named(name, self.server())
        assert found, name
        return found[0]

    def is_whole(self, names: Iterable[str]) -> bool:
        """Whether it has a server with all these parts, and is not between two."""
        processes = [found for guard in self._guards() for found in of_session(guard)]
        return all(_named(name, processes) for name in names)

    def left_behind(self) -> list[str]:
        """Files of the places of all servers of this service, in shared memory too."""
        in_memory = [path.name for name in self.places for path in Path("/dev/shm").glob(f"{name}*")]
        return in_memory + [path.name for path in self.temporary.iterdir()]

    def _guards(self) -> list[int]:
        return [found.pid for found in _children(self.process.pid) if found.session == found.pid]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary)}

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line)


class Asking:
    """A request under way, in a thread of its own."""

    def __init__(self, service: Service) -> None:
        self.error: Exception | None = None
        self._service = service
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def ended(self, seconds: float = PATIENCE) -> bool:
        """Whether it has ended within `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _ask(self) -> None:
        try:
            self._service.ask(8000)
        except Exception as error:
            self.error = error


@contextmanager
def served(
    folder: Path, engine: Mapping[str, Any] = MappingProxyType({}), **serving: Any
) -> Iterator[Service]:
    """A service that is ready, and in any case ended."""
    service = Service(folder, engine, **serving)
    try:
        service.start()
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()


def _named(name: str, processes: Iterable[Process]) -> list[Process]:
    def runs(process: Process) -> bool:
        return process.name == name or any(part.endswith(f"/{name}/1/model.py") for part in process.arguments)

    return [process for process in processes if runs(process)]


def _children(pid: int) -> list[Process]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [found for each in listed if (found := find(int(each))) is not None]
