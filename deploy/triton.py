"""Starts the real `tritonserver` that lies in the `nvidia-pytriton` wheel, and stops it again.

The wheel (0.7.0, Triton 2.51) carries the server, its Python backend and one backend stub per Python version. The
stub is linked against the shared `libpython` of its version, which is looked for in the interpreter's own library
directory; Pythons that were built without it cannot run the Python backend.

Example::

    with TritonServer(Path("runs/model_repo"), http_port=8000, grpc_port=8001, metrics_port=8002) as server:
        server.wait_until_ready()
"""

import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from deploy.access import closed_endpoints
from deploy.place import Place
from deploy.server import STOP_SECONDS, ServerProcess, TritonError

_PACKAGE = "nvidia-pytriton"


class TritonServer(ServerProcess):
    """The wheel's server on one model repository."""

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int,
        grpc_port: int,
        metrics_port: int,
        host: str = "127.0.0.1",
        log: Path | None = None,
        stop_seconds: float = STOP_SECONDS,
        environment: Path | None = None,
    ) -> None:
        """Prepare to serve `repository`; the rest as of `ServerProcess`.

        Args:
            environment: the virtual environment that the models run in, of the same Python version; None: this one.
        """
        super().__init__(
            host=host,
            http_port=http_port,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            log=log,
            stop_seconds=stop_seconds,
        )
        self._repository, self._environment = repository, environment

    def _command(self, place: Place) -> tuple[Sequence[str], Mapping[str, str]]:
        site = _site_packages()
        backends = place.directory / "backends"
        _assemble_python_backend(site, backends)
        command = [
            str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            *("--model-repository", str(self._repository.resolve())),
            *("--backend-directory", str(backends)),
            *("--backend-config", f"python,shm-region-prefix-name={place.name}_"),
            *("--http-address", self.host, "--http-port", str(self.http_port)),
            *("--grpc-address", self.host, "--grpc-port", str(self.grpc_port)),
            *("--metrics-address", self.host, "--metrics-port", str(self.metrics_port)),
            *("--allow-gpu-metrics", "false", "--allow-cpu-metrics", "false", "--log-warning", "false"),
            *("--exit-timeout-secs", str(math.ceil(self.stop_seconds))),
            *closed_endpoints(),
            "--disable-auto-complete-config",
            # Request objects are not reused: 2.51 crashes now and then when one whose client had cancelled is.
            *("--grpc-infer-allocation-pool-size", "0"),
        ]
        return command, _variables(site, self._environment)


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


def check_installation() -> None:
    """Find out whether the server could be started.

    Raises:
        TritonError: a part is missing; says which and what to do.
    """
    _backend_parts(_site_packages())


def _site_packages() -> Path:
    try:
        return Path(str(distribution(_PACKAGE).locate_file("")))
    except PackageNotFoundError:
        raise TritonError(f"the package {_PACKAGE} is missing; run `make setup`") from None


def _assemble_python_backend(site: Path, backends: Path) -> None:
    """Put the Python backend beside the stub of this interpreter's version."""
    backend, stub = _backend_parts(site)
    shutil.copytree(backend, backends / "python")
    shutil.copy2(stub, backends / "python" / "triton_python_backend_stub")


def _backend_parts(site: Path) -> tuple[Path, Path]:
    """The Python backend and the stub of this interpreter's version."""
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
    return bundle / "backends" / "python", stub


def _variables(site: Path, environment: Path | None) -> dict[str, str]:
    """What the server and its Python stub need.

    The stub embeds Python. From 3.11 on it does so in isolation: PYTHONPATH is ignored, and packages are those of
    the `python3` that PATH finds first, hence this interpreter's environment, or the one that the models run in. 3.10
    goes by PYTHONPATH, as do processes that models start.
    """
    library = python_library()
    libraries = [
        str(site / "nvidia_pytriton.libs"),
        str(library.parent) if library else "",
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    if environment is None:
        programs = Path(sys.executable).parent
        packages = [Path(__file__).resolve().parents[1], site]
    else:
        programs = environment / "bin"
        packages = list(environment.glob("lib/python*/site-packages"))
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
    }
