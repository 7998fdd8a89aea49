"""Starts the real `tritonserver` that lies in the `nvidia-pytriton` wheel, and stops it again.

The wheel (0.7.0, Triton 2.51) carries the server, its Python backend and one backend stub per Python version. The
stub is linked against the shared `libpython` of its version, which is looked for in the interpreter's own library
directory; Pythons that were built without it cannot run the Python backend.

Example::

    with TritonServer(Path("runs/model_repo"), http_port=8000, grpc_port=8001, metrics_port=8002) as server:
        server.wait_until_ready()
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType

_START_SECONDS = 120.0
_STOP_SECONDS = 20.0
_PACKAGE = "nvidia-pytriton"


class TritonError(RuntimeError):
    """The server cannot be started, or did not become ready."""


class TritonServer:
    """One server process on one model repository; a context manager that always stops it."""

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int,
        grpc_port: int,
        metrics_port: int,
        host: str = "127.0.0.1",
        log: Path | None = None,
    ) -> None:
        """Prepare to serve `repository`; `log` gets the server's output (the terminal does without it)."""
        self.host = host
        self.http_port, self.grpc_port, self.metrics_port = http_port, grpc_port, metrics_port
        self._repository = repository
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._backends: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "TritonServer":
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
        site = _site_packages()
        self._backends = tempfile.TemporaryDirectory(prefix="drafthouse-backends-")
        _assemble_python_backend(site, Path(self._backends.name))
        command = [
            str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            *("--model-repository", str(self._repository.resolve())),
            *("--backend-directory", self._backends.name),
            *("--http-address", self.host, "--http-port", str(self.http_port)),
            *("--grpc-address", self.host, "--grpc-port", str(self.grpc_port)),
            *("--metrics-address", self.host, "--metrics-port", str(self.metrics_port)),
            *("--allow-gpu-metrics", "false", "--allow-cpu-metrics", "false", "--log-warning", "false"),
            "--disable-auto-complete-config",
            # Request objects are not reused: 2.51 crashes now and then when one whose client had cancelled is.
            *("--grpc-infer-allocation-pool-size", "0"),
        ]
        output = self._log.open("wb") if self._log else None
        try:
            self._process = subprocess.Popen(
                command, env=_environment(site), stdout=output, stderr=subprocess.STDOUT if output else None,
                start_new_session=True,
            )  # fmt: skip
        finally:
            if output:
                output.close()

    def wait_until_ready(self, timeout: float = _START_SECONDS) -> None:
        """Return once all models are ready.

        Raises:
            TritonError: the server stopped or took longer; carries the end of its log.
        """
        address = f"http://{self.host}:{self.http_port}/v2/health/ready"
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self._process is None or self._process.poll() is not None:
                raise TritonError(f"tritonserver stopped while starting{self._log_tail()}")
            try:
                with urllib.request.urlopen(address, timeout=2):
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
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self._backends:
            self._backends.cleanup()
            self._backends = None

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


def python_library() -> Path | None:
    """The shared libpython of this interpreter, or None if there is none."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    places = [
        sysconfig.get_config_var("LIBDIR"),
        str(Path(sys.base_prefix) / "lib"),
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
    ]
    found = (Path(place) / name for place in places if place)
    return next((path for path in found if path.exists()), None)


def _site_packages() -> Path:
    try:
        return Path(str(distribution(_PACKAGE).locate_file("")))
    except PackageNotFoundError:
        raise TritonError(f"the package {_PACKAGE} is missing; run `make setup`") from None


def _assemble_python_backend(site: Path, backends: Path) -> None:
    """Put the Python backend beside the stub of this interpreter's version."""
    bundle = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = bundle / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise TritonError(
            f"{_PACKAGE} has no backend stub for Python {version}; use Python 3.10, 3.11 or 3.12"
        )
    if python_library() is None:
        raise TritonError(
            f"libpython{version}.so.1.0 was not found, which Triton's Python backend needs: install the package "
            f"libpython{version} of your distribution, or a Python built with --enable-shared"
        )
    shutil.copytree(bundle / "backends" / "python", backends / "python")
    shutil.copy2(stub, backends / "python" / "triton_python_backend_stub")


def _environment(site: Path) -> dict[str, str]:
    """What the server and its Python stub need.

    The stub embeds Python. From 3.11 on it does so in isolation: PYTHONPATH is ignored, and packages are those of
    the `python3` that PATH finds first, hence this interpreter's environment. 3.10 goes by PYTHONPATH.
    """
    library = python_library()
    libraries = [
        str(site / "nvidia_pytriton.libs"),
        str(library.parent) if library else "",
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    root = Path(__file__).resolve().parents[1]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, (root, site))),
    }
