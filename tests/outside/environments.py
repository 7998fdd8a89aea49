"""Environments of outside clients: a virtual environment each, kept between runs.

The clients' requirements contradict ours and each other's, and are large. So each client is installed from its own
lock (`requirements/NAME.txt`) into `outside/NAME-pyVERSION` of the kit's cache (`$DRAFTHOUSE_CACHE`, or
`~/.cache/drafthouse`), the first time that its test runs. The lock is kept in the environment: while it is
unchanged, the environment is used as it is. An environment is built beside its place and renamed, so it is
complete or absent. Whatever cannot be fetched is `Unavailable`, with the reason in one line; tests skip then.

Example::

    environment = prepare_environment(REQUIREMENTS / "aiperf.txt")
    run([*environment.program("aiperf"), "--version"], seconds=60, variables=environment.variables())
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from build.targets.download import cache_directory
from tests.outside.processes import ProgramError, run

REQUIREMENTS = Path(__file__).parent / "requirements"
_LOCK = "requirements.txt"
_INSTALL_SECONDS = 480
_DOWNLOAD_SECONDS = 60
# What would lead a client's interpreter or its libraries astray.
_DROPPED = ("PYTHON", "VIRTUAL_ENV", "LD_", "HF_", "TRANSFORMERS_")


class Unavailable(Exception):
    """A client, or something it needs, cannot be had on this machine."""


@dataclass(frozen=True)
class Environment:
    """A client's virtual environment."""

    directory: Path

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def program(self, name: str) -> tuple[Path, Path]:
        """How to start one of its scripts; their own first lines still name the place they were built in."""
        return self.python, self.directory / "bin" / name

    def installed(self, path: str) -> Path:
        """A file or folder of its site-packages."""
        return next(self.directory.glob(f"lib/python*/site-packages/{path}"))

    def variables(self, **added: str) -> dict[str, str]:
        """The environment variables to start its programs with."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        return {**kept, "PATH": f"{self.directory / 'bin'}{os.pathsep}{kept.get('PATH', '')}", **added}


def prepare_environment(requirements: Path) -> Environment:
    """The environment of a lock file, under the file's name; installed if need be.

    Raises:
        Unavailable: it cannot be installed.
    """
    lock = requirements.read_text(encoding="utf-8")
    directory = _room() / f"{requirements.stem}-py{sys.version_info.major}.{sys.version_info.minor}"
    environment = Environment(directory)
    if not _is_current(environment, lock):
        with _built_beside(directory) as staging:
            _install(Environment(staging), lock)
    return environment


def debian_library(file_name: str, package: str) -> Path | None:
    """Directory of a shared library from a Debian or Ubuntu package, or None if the system has the library.

    The package is not installed, only unpacked, so nobody has to be root.

    Raises:
        Unavailable: it is neither installed nor to be fetched.
    """
    try:
        ctypes.CDLL(file_name)
    except OSError:
        directory = _room() / package
    else:
        return None
    if not directory.is_dir():
        with _built_beside(directory) as staging:
            _unpack(package, staging)
    found = next(directory.glob(f"**/{file_name}"), None)
    if found is None:
        raise Unavailable(f"the package {package} in {directory} has no {file_name}")
    return found.parent


def _room() -> Path:
    return cache_directory() / "outside"


def _is_current(environment: Environment, lock: str) -> bool:
    kept = environment.directory / _LOCK
    return environment.python.exists() and kept.is_file() and kept.read_text(encoding="utf-8") == lock


def _install(environment: Environment, lock: str) -> None:
    """Fetch and unpack; the lock is complete, and without wheels some packages would compile for minutes."""
    kept = environment.directory / _LOCK
    options = (
        "--quiet",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
        "--no-compile",
        "--retries=2",
        "--timeout=30",
    )
    try:
        run([sys.executable, "-m", "venv", environment.directory], seconds=_INSTALL_SECONDS)
        kept.write_text(lock, encoding="utf-8")
        run([environment.python, "-m", "pip", "install", *options, "-r", kept], seconds=_INSTALL_SECONDS)
    except ProgramError as error:
        raise Unavailable(f"not installable: {_last_line(error)}") from None


def _unpack(package: str, staging: Path) -> None:
    """Fetch the package with apt's lists, or with fresh ones of our own where the system has none."""
    own = [f"-oDir::State={staging / 'state'}", f"-oDir::Cache={staging / 'cache'}"]
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (staging / folder).mkdir(parents=True)
    try:
        try:
            run(["apt-get", "-qq", "download", package], seconds=_DOWNLOAD_SECONDS, directory=staging)
        except ProgramError:
            run(["apt-get", "-qq", *own, "update"], seconds=_DOWNLOAD_SECONDS)
            run(["apt-get", "-qq", *own, "download", package], seconds=_DOWNLOAD_SECONDS, directory=staging)
        run(["dpkg", "-x", next(staging.glob("*.deb")), staging / "tree"], seconds=_DOWNLOAD_SECONDS)
    except (ProgramError, OSError) as error:
        raise Unavailable(
            f"the package {package} is missing and cannot be fetched: {_last_line(error)}"
        ) from None
    for folder in ("state", "cache"):
        shutil.rmtree(staging / folder)


@contextmanager
def _built_beside(directory: Path) -> Iterator[Path]:
    """A new directory that takes the place of `directory` once the block is through."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise Unavailable(f"the cache cannot be written: {error}") from None
    try:
        yield staging
        shutil.rmtree(directory, ignore_errors=True)
        staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
