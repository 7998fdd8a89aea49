"""Environments of outside clients, and unpacked Debian packages, in the kit's cache.

Both lie in `outside/` of `$DRAFTHOUSE_CACHE`, or `~/.cache/drafthouse`. Whatever cannot be fetched is
`Unavailable`, with the reason in one line; tests skip then.

Example::

    environment = prepare_environment(REQUIREMENTS / "aiperf.txt")
    run([*environment.program("aiperf"), "--version"], seconds=60, variables=environment.variables())
"""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

from deployments.cache import cache_directory
from planner.bench.peers import environments
from planner.bench.peers.environments import Environment, Unavailable, built_beside, last_line
from planner.bench.peers.processes import ProgramError, run

REQUIREMENTS = Path(__file__).parent / "requirements"
_DOWNLOAD_SECONDS = 60


def prepare_environment(requirements: Path) -> Environment:
    """The environment of a lock file, under the file's name; installed if need be.

    Raises:
        Unavailable: it cannot be installed.
    """
    return environments.prepare_environment(requirements, _room())


def debian_library(file_name: str, package: str) -> Path | None:
    """Directory of a shared library from a Debian or Ubuntu package, or None if the system has the library.

    The package is not installed, only unpacked, so nobody has to be root.

    Raises:
        Unavailable: it is neither installed nor to be fetched.
    """
    try:
        ctypes.CDLL(file_name)
    except OSError:
        return _unpacked(file_name, package).parent
    return None


def debian_program(name: str, package: str) -> Path:
    """A program: the system's own, or that of a Debian or Ubuntu package, unpacked as above.

    Raises:
        Unavailable: it is neither installed nor to be fetched.
    """
    installed = shutil.which(name)
    return Path(installed) if installed else _unpacked(f"*bin/{name}", package)


def _room() -> Path:
    return cache_directory() / "outside"


def _unpacked(file_name: str, package: str) -> Path:
    """A file of a package, which is fetched and unpacked if need be."""
    directory = _room() / package
    if not directory.is_dir():
        with built_beside(directory) as staging:
            _unpack(package, staging)
    found = next(directory.glob(f"**/{file_name}"), None)
    if found is None:
        raise Unavailable(f"the package {package} in {directory} has no {file_name}")
    return found


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
            f"the package {package} is missing and cannot be fetched: {last_line(error)}"
        ) from None
    for folder in ("state", "cache"):
        shutil.rmtree(staging / folder)
