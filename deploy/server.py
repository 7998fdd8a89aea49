"""A `tritonserver` process, whichever one it is: started, waited for, and always stopped again.

What is started is a subclass's business: `deploy.triton` (the server in the nvidia-pytriton wheel) and
`deploy.trtllm_server` (NVIDIA's containers).
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_Self = TypeVar("_Self", bound="ServerProcess")


class TritonError(RuntimeError):
    """The server cannot be started, or did not become ready."""


class ServerProcess:
    """One server process; a context manager that always stops it."""

    def __init__(
        self, *, host: str, http_port: int, grpc_port: int, metrics_port: int, log: Path | None = None
    ) -> None:
        """Prepare to serve on these ports; `log` gets the server's output (the terminal does without it)."""
        self.host = host
        self.http_port, self.grpc_port, self.metrics_port = http_port, grpc_port, metrics_port
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self: _Self) -> _Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process.

        Raises:
            TritonError: a part is missing or a port is taken; says which and what to do.
        """
        self._check_ports()
        command, environment = self._command()
        output = self._log.open("wb") if self._log else None
        try:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise TritonError(f"{command[0]} is not installed here") from None
        finally:
            if output:
                output.close()

    def wait_until_ready(self, timeout: float = _START_SECONDS) -> None:
        """Return once all models are ready and every port answers; the one for metrics is the last to open.

        Raises:
            TritonError: the server stopped or took longer; carries the end of its log.
        """
        pages = [
            f"http://{self.host}:{self.http_port}/v2/health/ready",
            f"http://{self.host}:{self.metrics_port}/metrics",
        ]
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise TritonError(f"tritonserver stopped while starting{self._log_tail()}")
            try:
                for page in pages:
                    urllib.request.urlopen(page, timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise TritonError(f"tritonserver was not ready after {timeout:.0f} s{self._log_tail()}")

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit status."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """Stop the server, its model processes too; harmless if it does not run."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process:
            # A model process that hangs outlives its server; it would keep memory and cores for ever.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self._release()

    def _command(self) -> tuple[Sequence[str], Mapping[str, str]]:
        """Program and arguments, and the whole environment."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give back what `_command` made; the process has ended."""

    def _check_ports(self) -> None:
        for name in ("http_port", "grpc_port", "metrics_port"):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, getattr(self, name)))
                except OSError as error:
                    raise TritonError(
                        f"serving.{name} {getattr(self, name)} on {self.host} cannot be used ({error.strerror}); "
                        "stop what listens there or choose another port in the spec"
                    ) from None

    def _log_tail(self) -> str:
        if self._log is None or not self._log.is_file():
            return ""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line for line in lines if "rror" in line or line.startswith("E")] or lines
        return f"; the log {self._log} ends:\n" + "\n".join(told[-8:])


def free_ports(count: int) -> list[int]:
    """So many free TCP ports on the loopback address."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [int(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()
