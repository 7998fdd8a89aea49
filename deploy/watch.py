"""Notices that a server is dead though it looks healthy, and says what has happened.

Triton 2.51 answers "ready" when a model's process was killed: every request fails, those in flight wait for ever. So
`drafthouse serve` watches

 * the server's processes: whether one has ended, or has been stopped (SIGSTOP);
 * the models' signs of life (`engine.serving.life`): whether a process, or the engine's thread, is stuck;
 * whether requests are answered: where none was for a while, it asks for a token (`deploy.health`);
 * whether gRPC's own threads still answer (`deploy.grpc_door`).
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deploy.grpc_door import fault
from deploy.health import Health, check
from deploy.log import bound
from deploy.metrics import work_done
from deploy.processes import Process, end_session, find, of_session
from deploy.server import ServerDied, ServerProcess

_PERIOD_SECONDS = 0.25
_STOPPED_SECONDS = 5.0  # somebody may look at a process for a moment
_LOOK_SECONDS = 30.0
_WATCHED = ("tritonserver", "triton_python_b")  # the first 15 letters of triton_python_backend_stub
_SIGNS = "signs"


@dataclass
class _Sign:
    """A sign of life, and since when it has been as it is."""

    shown: float
    since: float


@dataclass
class Watch:
    """Watches a server that is ready.

    Attributes:
        server: which one.
        silence_seconds: what shows no sign of life, or gives no token, for this long is taken for dead.
    """

    server: ServerProcess
    silence_seconds: float
    _names: dict[int, str] = field(init=False)
    _stopped: dict[int, float] = field(init=False, default_factory=dict)
    _signs: dict[str, _Sign] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._names = {
            found.pid: _told(found)
            for found in of_session(self.server.session)
            if found.name.startswith(_WATCHED)
        }
        self._asking = _Asking(self.server, self.silence_seconds)

    def wait(self) -> None:
        """Wait until the server dies.

        Raises:
            ServerDied: says how.
        """
        while True:
            self.look()
            time.sleep(_PERIOD_SECONDS)

    def look(self) -> None:
        """Look at everything once.

        Raises:
            ServerDied: as above.
        """
        self._look_at_processes(time.monotonic())
        if (status := self.server.status) is not None:
            raise ServerDied(f"tritonserver ended with status {status}")
        self._look_at_signs(time.monotonic())
        self._asking.look(time.monotonic())
        if self.server.log:
            bound(self.server.log)

    def _look_at_processes(self, now: float) -> None:
        for pid, name in self._names.items():
            found = find(pid)
            if found is None or found.state == "Z" or found.session != self.server.session:
                raise ServerDied(f"{name} has ended")
            if found.state != "T":
                self._stopped.pop(pid, None)
            elif now - self._stopped.setdefault(pid, now) > _STOPPED_SECONDS:
                raise ServerDied(f"{name} has been stopped for {_STOPPED_SECONDS:g} s")

    def _look_at_signs(self, now: float) -> None:
        for path in (self.server.place.directory / _SIGNS).glob("*"):
            try:
                shown = path.stat().st_mtime
            except FileNotFoundError:  # its process has ended, which is seen at the next look
                continue
            sign = self._signs.setdefault(path.name, _Sign(shown, now))
            if shown != sign.shown:
                self._signs[path.name] = _Sign(shown, now)
            elif now - sign.since > self.silence_seconds:
                raise ServerDied(f"{path.name} has shown no sign of life for {self.silence_seconds:g} s")


@contextmanager
def watched(server: ServerProcess, silence_seconds: float) -> Iterator[None]:
    """Watch a server beside what the block does with it. When it dies it is ended, so that nobody waits for answers.

    Raises:
        ServerDied: it has died; in place of what that made the block raise.
    """
    watch, over, deaths = Watch(server, silence_seconds), threading.Event(), list[ServerDied]()

    def run() -> None:
        try:
            while not over.wait(_PERIOD_SECONDS):
                watch.look()
        except ServerDied as death:
            deaths.append(death)
            end_session(server.session)

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    try:
        try:
            yield
        finally:
            over.set()
            thread.join()
    except Exception:
        if deaths:
            raise deaths[0] from None
        raise


class _Asking:
    """Asks at the gRPC door, and for a token when no request has been answered for a while, beside everything else."""

    def __init__(self, server: ServerProcess, silence_seconds: float) -> None:
        self._server = server
        self._seconds = silence_seconds
        self._next = time.monotonic() + _LOOK_SECONDS
        self._seen = work_done(server.metrics)
        self._thread: threading.Thread | None = None
        self._health = Health(True, "")

    def look(self, now: float) -> None:
        if not self._health.well:
            raise ServerDied(f"requests are not answered: {self._health.shown_by}")
        if now < self._next or (self._thread and self._thread.is_alive()):
            return
        self._next = now + _LOOK_SECONDS
        self._thread = threading.Thread(target=self._ask, name="health", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        if wrong := fault(self._server.grpc, self._seconds):
            self._health = Health(False, wrong)
            return
        done = work_done(self._server.metrics)
        if done is not None and done != self._seen:
            self._seen = done
            return
        self._health = check(self._server.http, self._server.metrics, self._seconds)
        self._seen = work_done(self._server.metrics)


def _told(process: Process) -> str:
    """What a process is called in messages: a stub by its model, which is among its arguments as a path."""
    models = [Path(part).parts[-3] for part in process.arguments if part.endswith("/1/model.py")]
    name = f"the process of model {models[0]}" if models else process.name
    return f"{name} ({process.pid})"
