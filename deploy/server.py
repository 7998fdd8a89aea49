"""A `tritonserver` process, whichever one it is: started, waited for, and always stopped again.

What is started is a subclass's business: `deploy.triton` (the server in the nvidia-pytriton wheel) and
`deploy.trtllm_server` (NVIDIA's containers). Whether it is well while it runs, `deploy.watch` knows.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from deploy.exporter.fetch import Unanswered, get_text
from deploy.guard import Order
from deploy.log import previous_log, refusals
from deploy.metrics import running_requests
from deploy.place import Place, remove
from deploy.processes import end_session

STOP_SECONDS = 30.0
PLACE_VARIABLE = "DRAFTHOUSE_PLACE"
"""Names the server's directory to its models: they show there that they live, and see there that it is stopping."""
STOPPING = "stopping"
_START_SECONDS = 120.0
_FINISH_SECONDS = (
    5.0  # for a server in which nothing runs any more; idle connections would hold it up for longer
)
_GUARD_SECONDS = 5.0
_POLL_SECONDS = 0.05
# Isolated: neither the working directory nor the environment says what is imported.
_GUARD = f"""
import sys
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from deploy.guard import main
sys.exit(main())
"""
_Self = TypeVar("_Self", bound="ServerProcess")


class TritonError(RuntimeError):
    """The server cannot be started, or did not become ready."""


class ServerDied(Exception):
    """A server that was ready has ended, or must be ended; the text says what has happened."""


class ServerProcess:
    """One server process; a context manager that always stops it."""

    def __init__(
        self,
        *,
        host: str,
        http_port: int,
        grpc_port: int,
        metrics_port: int,
        log: Path | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        """Prepare to serve on these ports.

        Args:
            host: address of all ports.
            http_port: of KServe over HTTP.
            grpc_port: of KServe over gRPC.
            metrics_port: of the page for Prometheus.
            log: gets the server's output (the terminal does without it); that of the last start goes beside it.
            stop_seconds: how long what runs when the server is stopped may go on.
        """
        self.host = host
        self.http_port, self.grpc_port, self.metrics_port = http_port, grpc_port, metrics_port
        self.stop_seconds = stop_seconds
        self.log = log
        self._place: Place | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._ready = False

    def __enter__(self: _Self) -> _Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, ServerDied):
            self.kill()
        else:
            self.stop()

    @property
    def place(self) -> Place:
        """What the running server has on this machine."""
        assert self._place is not None, "the server has not been started"
        return self._place

    @property
    def session(self) -> int:
        """Number of the session that all its processes are in."""
        assert self._guard is not None, "the server has not been started"
        return self._guard.pid

    @property
    def status(self) -> int | None:
        """The exit status of a server that has ended; None while it runs."""
        return self._guard.poll() if self._guard else 0

    def start(self) -> None:
        """Start the process.

        Raises:
            TritonError: a part is missing, a port is taken, or there is no room; says which and what to do.
        """
        self.check_ports()
        try:
            self._place = Place.take()
            command, environment = self._command(self._place)
            if shutil.which(command[0], path=environment.get("PATH")) is None:
                raise TritonError(f"{command[0]} is not installed here")
            self._start(command, {**environment, PLACE_VARIABLE: str(self._place.directory)})
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise TritonError(f"the server cannot be started: {error}") from None
            raise

    def _start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        order = Order(command, environment, self.place.name, self.place.locks)
        output = previous_log(self.log) if self.log else None
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GUARD],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT if output else None,
                start_new_session=True, pass_fds=order.locks,
            )  # fmt: skip
        finally:
            if output:
                output.close()
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has been killed, which whoever waits will find out
            self._guard.stdin.write(order.line())
            self._guard.stdin.flush()

    def wait_until_ready(self, timeout: float = _START_SECONDS) -> None:
        """Return once all models are ready and every port answers; the one for metrics is the last to open.

        Raises:
            TritonError: the server stopped or took longer; carries the end of its log.
        """
        pages = [f"{self.http}/v2/health/ready", self.metrics]
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.status is not None:
                raise TritonError(f"tritonserver stopped while starting{self._log_tail()}")
            try:
                for page in pages:
                    get_text(page, 2.0)
                self._ready = True
                return
            except Unanswered:
                time.sleep(0.1)
        raise TritonError(f"tritonserver was not ready after {timeout:.0f} s{self._log_tail()}")

    @property
    def http(self) -> str:
        """Address of KServe over HTTP, from this machine."""
        return f"http://{_reachable(self.host)}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Address of KServe over gRPC, from this machine."""
        return f"{_reachable(self.host)}:{self.grpc_port}"

    @property
    def metrics(self) -> str:
        """Address of the page for Prometheus, from this machine."""
        return f"http://{_reachable(self.host)}:{self.metrics_port}/metrics"

    def stop(self) -> None:
        """Stop the server, its model processes too; harmless if it does not run.

        What runs is finished within `stop_seconds`; what comes meanwhile is refused. Being interrupted ends it at once.
        So does not having been ready: Triton hears nothing while it loads, and nothing runs.
        """
        try:
            if self._guard and self._ready and self.status is None:
                self._finish()
        finally:
            self.kill()

    def kill(self) -> None:
        """End the server now, with whatever runs in it; harmless if it does not run."""
        guard, self._guard, self._ready = self._guard, None, False
        if guard:
            assert guard.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                guard.stdin.close()
            try:
                guard.wait(_GUARD_SECONDS)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
            end_session(guard.pid)  # there is none, unless the guard was killed
        self._leave()

    def _finish(self) -> None:
        """Have the server stop, and wait until it has, or nothing runs in it any more, or its time is over."""
        with contextlib.suppress(OSError):  # without room for the file what comes meanwhile is not refused
            (self.place.directory / STOPPING).touch()
        assert self._guard is not None
        counts = running_requests(self.metrics) is not None
        self._guard.terminate()
        end = time.monotonic() + self.stop_seconds
        while self.status is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            if counts and not running_requests(self.metrics):
                end = min(end, time.monotonic() + _FINISH_SECONDS)
                counts = False

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place:
            remove(place.name)  # unless the guard has
            place.give_up()

    def _command(self, place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
        """Program and arguments, and the whole environment."""
        raise NotImplementedError

    def check_ports(self) -> None:
        """Find out whether the server could listen.

        Raises:
            TritonError: a port is taken; says which.
        """
        for name in ("http_port", "grpc_port", "metrics_port"):
            check_port(self.host, name, getattr(self, name))

    def _log_tail(self) -> str:
        if self.log is None or not self.log.is_file():
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        if reasons := refusals(lines):
            return f": {'; '.join(reasons)}; the log is {self.log}"
        told = [line for line in lines if "rror" in line or line.startswith("E")] or lines
        return f"; the log {self.log} ends:\n" + "\n".join(told[-8:])


def check_port(host: str, name: str, port: int) -> None:
    """Find out whether a server could listen.

    Raises:
        TritonError: it could not.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise TritonError(
                f"serving.{name} {port} on {host} cannot be used ({error.strerror}); stop what listens there or choose "
                "another port in the spec"
            ) from None


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "") else host
