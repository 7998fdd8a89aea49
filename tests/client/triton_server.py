"""Starts the real Triton server of the nvidia-pytriton wheel on the test repository."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from tests.client.repository import write_repository
from tests.ports import free_ports
from tests.revival import REVIVALS

START_SECONDS = 60
DEADLINES = (0.2, 1.0, 5.0, 25.0)
"""For requests that are to reach the server and not to end: the first is enough but for a machine with much to do."""


@dataclass
class Triton:
    """A running server; `pages` are those that answer when it is ready, in the order in which they come up."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    pages: Sequence[str]
    journal: Path
    log: Path
    region: str
    command: Sequence[str | Path]
    revivable: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def start_again(self) -> None:
        """End what is left of it, and start it on its ports."""
        self._end()
        self.process = _started(self.command, self.log)
        wait_until_ready(self)

    def address(self, protocol: str) -> str:
        return self.grpc if protocol == "grpc" else self.http

    def ending(self, request_id: str) -> str:
        """How the request ended as the model saw it; waits for its line in the journal."""
        return self._noted(request_id, lambda how: how != "began")

    def wait_for(self, request_id: str) -> None:
        """Return once the model has the request."""
        self._noted(request_id, lambda how: how == "began")

    def has(self, request_id: str) -> bool:
        """Whether the model has or had the request, or gets it at once."""
        try:
            self._noted(request_id, lambda how: True, seconds=1.0)
        except AssertionError:
            return False
        return True

    def _noted(self, request_id: str, wanted: Callable[[str], bool], seconds: float = 60.0) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in self.journal.read_text().splitlines() if self.journal.exists() else ():
                how, _, name = line.partition(" ")
                if name == request_id and wanted(how):
                    return how
            time.sleep(0.02)
        raise AssertionError(f"the model did not note that of the request {request_id}")

    def kill(self) -> None:
        """Let the server die without a word, its model processes too, even those that outlived it.

        It would wait for idle connections, if it were asked to end.
        """
        self.revivable.close()
        self._end()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for memory in Path("/dev/shm").glob(f"{self.region}*"):
            memory.unlink(missing_ok=True)


def start_triton(folder: Path) -> Triton:
    """Start the `tritonserver` of the nvidia-pytriton wheel on the test repository; returns when it is
    ready."""
    write_repository(folder / "repository", folder / "journal")
    return launch(folder)


def launch(folder: Path, metrics: int | None = None) -> Triton:
    """Start it on the repository in that folder, and return when it is ready.

    Args:
        folder: for all its files.
        metrics: port of its page for Prometheus; `None`: it has none.
    """
    site = Path(str(distribution("nvidia-pytriton").locate_file("")))
    bundle = site / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    backends = folder / "backends"
    (backends / "python").mkdir(parents=True)
    stub = bundle / "python_backend_stubs" / version / "triton_python_backend_stub"
    for source in (*(bundle / "backends" / "python").glob("*.*"), stub):
        (backends / "python" / source.name).symlink_to(source)
    log = folder / "log"
    grpc, http = free_ports(2)
    region = f"drafthouse_test_{os.getpid()}_{grpc}_"
    command = [
        bundle / "bin" / "tritonserver",
        f"--model-repository={folder / 'repository'}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={region}",
        f"--grpc-port={grpc}",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        "--http-address=127.0.0.1",
        "--allow-metrics=false" if metrics is None else f"--metrics-port={metrics}",
    ]
    pages = [f"http://127.0.0.1:{http}/v2/health/ready"]
    if metrics is not None:  # the last of its services, without which the server ends
        pages.append(f"http://127.0.0.1:{metrics}/metrics")
    addresses = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    triton = Triton(_started(command, log), *addresses, pages, folder / "journal", log, region, command)
    wait_until_ready(triton)
    triton.revivable.enter_context(REVIVALS.of(log, triton.grpc, triton.start_again))
    return triton


def _started(command: Sequence[str | Path], log: Path) -> subprocess.Popen[bytes]:
    site = Path(str(distribution("nvidia-pytriton").locate_file("")))
    log.unlink(missing_ok=True)
    # Whoever writes does so at its end: a model process outlives the server that a test kills.
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=environment(site), stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def environment(site: Path) -> dict[str, str]:
    """What the server and its Python stub need from the environment.

    The stub embeds Python. From 3.11 on it does so isolated: PYTHONPATH is ignored, and the packages are
    those of the `python3` that PATH finds first, which therefore has to be this interpreter's (virtual)
    environment. 3.10 goes by PYTHONPATH.
    """
    libraries = [str(site / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "PYTHONPATH": str(site),
    }


def wait_until_ready(triton: Triton) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and triton.process.poll() is None:
        if is_ready(triton):
            return
        time.sleep(0.05)
    triton.kill()
    raise RuntimeError(f"Triton did not start:\n{triton.log.read_text()}")


def is_ready(triton: Triton) -> bool:
    try:
        for page in triton.pages:
            urllib.request.urlopen(page, timeout=60)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
    return True
