"""What a server has on a machine while it runs: a directory, shared memory, and a lock that says that it is in use.

Triton leaves its Python backend's shared memory behind when it is killed, 1 MiB and more a model, and a pod's
`/dev/shm` outlives its containers. So the regions of a server begin with the name of its place, and whoever takes a
place removes those that nobody uses any more. A place is in use as long as a process has its locks open: the one that
took it, or one that inherited them.
"""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "drafthouse_"
_LOCK = ".lock"
_NAME = re.compile(rf"{_PREFIX}[0-9a-f]{{16}}")


class Place:
    """A directory and a name that are no other server's.

    Attributes:
        name: what names of shared memory regions begin with.
        directory: for the server's own files.
        locks: file descriptors for the processes that use the place.
    """

    def __init__(self, name: str, directory: Path, locks: tuple[int, ...]) -> None:
        self.name, self.directory, self.locks = name, directory, locks

    @classmethod
    def take(cls) -> "Place":
        """Make one, after what others have left behind has been removed.

        Raises:
            OSError: there is no room.
        """
        remove_abandoned()
        name = _PREFIX + secrets.token_hex(8)
        directory = Path(tempfile.gettempdir()) / name
        with contextlib.ExitStack() as unless_made:
            unless_made.callback(remove, name)
            locks = tuple(_made(root, name, unless_made) for root in _roots())
            directory.mkdir(mode=0o700)
            unless_made.pop_all()
        return cls(name, directory, locks)

    def give_up(self) -> None:
        """Close the locks of this process; others that have them open go on using the place."""
        for handle in self.locks:
            os.close(handle)
        self.locks = ()


def remove(name: str) -> None:
    """Remove all that belongs to a place."""
    for root in _roots():
        for path in root.glob(f"{name}*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != _LOCK:
                _unlink(path)
        _unlink(root / (name + _LOCK))  # the last, so that whatever is left can still be found


def remove_abandoned() -> None:
    """Remove what belongs to places that nobody uses any more."""
    names = {path.name.removesuffix(_LOCK) for path in _lock_files()}
    for name in filter(_NAME.fullmatch, names):  # anybody may make files there, with any name
        with contextlib.ExitStack() as locks, contextlib.suppress(OSError):  # in use, or another user's
            for root in _roots():
                if (path := root / (name + _LOCK)).exists():
                    locks.callback(os.close, _locked(path))
            remove(name)


def _roots() -> tuple[Path, ...]:
    return tuple(dict.fromkeys((SHARED_MEMORY, Path(tempfile.gettempdir()))))


def _lock_files() -> Iterator[Path]:
    for root in _roots():
        yield from root.glob(f"{_PREFIX}*{_LOCK}")


def _made(root: Path, name: str, unless_made: contextlib.ExitStack) -> int:
    """A new lock. It is locked before it has its name, or others might take it for abandoned."""
    path = root / f".{name}"
    handle = _locked(path, os.O_CREAT | os.O_EXCL)
    unless_made.callback(os.close, handle)
    path.rename(root / (name + _LOCK))
    return handle


def _locked(path: Path, flags: int = 0) -> int:
    """An open, locked file.

    Raises:
        OSError: somebody else has locked it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
