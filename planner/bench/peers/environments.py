"""Environments of other people's programs: a virtual environment each, kept between runs.

Their requirements contradict ours and each other's, and are large. So each is installed from its own lock
(`NAME.txt`) into `NAME-pyVERSION` of a folder, the first time that it is needed. The lock is kept in the environment:
while it is unchanged, the environment is used as it is. An environment is built beside its place and renamed, so it
is complete or absent. Whatever cannot be fetched is `Unavailable`, with the reason in one line.

Example::

    environment = prepare_environment(REQUIREMENTS / "llama_cpp.txt", cache_directory() / "peers")
    run([environment.python, "-c", "import xllamacpp"], seconds=60, variables=environment.variables())
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deployments.errors import DrafthouseError
from deployments.files.directories import directory_beside, take_place
from planner.bench.peers.processes import ProgramError, run

REQUIREMENTS = Path(__file__).parent / "requirements"
_LOCK = "requirements.txt"
_INSTALL_SECONDS = 480
# What would lead an interpreter or its libraries astray.
_OF_AN_INTERPRETER = ("PYTHON", "VIRTUAL_ENV")
_DROPPED = (*_OF_AN_INTERPRETER, "LD_", "HF_", "TRANSFORMERS_")


class Unavailable(DrafthouseError):
    """A program, or something it needs, cannot be had on this machine."""


@dataclass(frozen=True)
class Environment:
    """A program's environment.

    Attributes:
        directory: that its `bin` is in.
        own: whether the kit has made it. One of somebody else's needs the variables that say where its libraries are.
    """

    directory: Path
    own: bool = True

    @property
    def python(self) -> Path:
        name = "python" if self.own else "python3"  # Debian and Ubuntu have no other
        return self.directory / "bin" / name

    def program(self, name: str) -> tuple[Path, Path]:
        """How to start one of its scripts; their own first lines still name the place they were built in."""
        return self.python, self.directory / "bin" / name

    def installed(self, path: str) -> Path:
        """A file or folder of its site-packages."""
        return next(self.directory.glob(f"lib/python*/site-packages/{path}"))

    def variables(self, **added: str) -> dict[str, str]:
        """The environment variables to start its programs with."""
        dropped = _DROPPED if self.own else _OF_AN_INTERPRETER
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {**kept, "PATH": f"{self.directory / 'bin'}{os.pathsep}{kept.get('PATH', '')}", **added}


def prepare_environment(requirements: Path, folder: Path) -> Environment:
    """The environment of a lock file, under the file's name in a folder; installed if need be.

    Raises:
        Unavailable: it cannot be installed.
    """
    lock, environment = requirements.read_text(encoding="utf-8"), _environment(requirements, folder)
    if not _is_current(environment, lock):
        with built_beside(environment.directory) as staging:
            _install(Environment(staging), lock)
    return environment


def installed_environment(requirements: Path, folder: Path) -> Environment | None:
    """The same, if it is there already."""
    environment = _environment(requirements, folder)
    return environment if _is_current(environment, requirements.read_text(encoding="utf-8")) else None


@contextmanager
def built_beside(directory: Path) -> Iterator[Path]:
    """A new directory that takes the place of `directory` once the block is through."""
    try:
        with directory_beside(directory) as staging:
            yield staging
            take_place(staging, directory)
    except OSError as error:
        raise Unavailable(f"the cache cannot be written: {error}") from None


def last_line(error: Exception) -> str:
    """The end of what an error says, which is where programs put the reason."""
    return str(error).strip().splitlines()[-1]


def _environment(requirements: Path, folder: Path) -> Environment:
    return Environment(folder / f"{requirements.stem}-py{sys.version_info.major}.{sys.version_info.minor}")


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
        raise Unavailable(f"not installable: {last_line(error)}") from None
