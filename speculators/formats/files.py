"""Files and directories that appear whole or not at all, and replace nothing but the kit's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class ForeignDirectoryError(OSError):
    """A directory would be replaced that the kit has not made."""


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; it takes the name when the block ends without an error.

    Raises:
        OSError: the file cannot be renamed.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_directory(path: Path, mark: str) -> Iterator[Path]:
    """Give a new directory beside `path`; it takes the name when the block ends without an error.

    What was there is removed then, unless it is the same, file by file: that is left alone. Whatever ends the block
    early, Ctrl-C included, it stays as it was; a kill at any moment leaves the old directory or the new one. What
    killed calls have left beside `path` is removed. A symbolic link is followed, so what it points to is replaced.

    Args:
        path: the directory.
        mark: name of a file by which the kit knows its own. An existing directory that holds other files and not this
            one is never replaced.

    Raises:
        ForeignDirectoryError: `path` is such a directory, or a file.
        OSError: the directory cannot be made or renamed.
    """
    place = Path(os.path.realpath(path))
    check_replaceable(path, mark)
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place)
    partial, handle = _new_partial(place)
    try:
        yield partial
        if not _is_same(partial, place):
            _take_place(partial, place, mark)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)


def check_replaceable(path: Path, mark: str) -> None:
    """Do nothing if `path` is free, empty, or the kit's own by `mark`.

    Raises:
        ForeignDirectoryError: it is something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ForeignDirectoryError(f"{path} is a file; name another directory")
    if any(path.iterdir()) and not (path / mark).is_file():
        raise ForeignDirectoryError(
            f"{path} holds files and no {mark}, so it was not made by drafthouse and is not replaced; name another "
            "directory"
        )


def exchange(new: Path, place: Path) -> None:
    """Give `new` the name `place`; what was there is called `new` afterwards, if there was anything.

    One step where kernel and file system can (Linux, renameat2(2) with RENAME_EXCHANGE), otherwise two.

    Raises:
        OSError: it cannot be renamed.
    """
    try:
        if not place.exists():
            new.rename(place)
            return
    except OSError as error:
        if error.errno not in _OCCUPIED:  # another process was faster
            raise
    if _exchanged(new, place):
        return
    old = new.with_name(f"{new.name}.old")
    with suppress(FileNotFoundError):
        place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise
    if old.exists():
        old.rename(new)


def _take_place(new: Path, place: Path, mark: str) -> None:
    """Exchange, also while another process does the same with a directory of its own."""
    while True:
        check_replaceable(place, mark)
        try:
            exchange(new, place)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise


def _exchanged(first: Path, second: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _new_partial(place: Path) -> tuple[Path, int]:
    """A new directory, and a handle that locks it until this process ends."""
    while True:
        partial = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.partial")
        partial.mkdir()
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(handle) is not False and partial.exists():
                return partial, handle
            os.close(handle)


def _remove_abandoned(place: Path) -> None:
    """Remove what processes that were killed have left; one that was killed between two renames is helped out."""
    pattern = f".{glob.escape(place.name)}.{'?' * 8}.partial"
    for old in place.parent.glob(f"{pattern}.old"):
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(place)
    for partial in place.parent.glob(pattern):
        with suppress(FileNotFoundError):
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            if _lock(handle):
                shutil.rmtree(partial, ignore_errors=True)
            os.close(handle)


def _lock(handle: int) -> bool | None:
    """Lock a directory; False if another process holds it, None where the file system cannot (NFS)."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_same(first: Path, second: Path) -> bool:
    """Whether two directories have the same files with the same content."""
    files, others = _files(first), _files(second)
    return files == others and all(filecmp.cmp(first / name, second / name, shallow=False) for name in files)


def _files(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir()}
