"""Directories that appear whole or not at all, and replace nothing but the kit's own."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import filecmp
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deployments.errors import DrafthouseError
from deployments.files.partial import lock, name_beside, pattern

INVENTORY = ".drafthouse-files"
"""In every directory that `replace_directory` has written: the names of its files, as a JSON object's `files`."""
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)
# A writer holds a directory for as long as one renaming takes; a server for as long as it runs.
_PATIENCE_SECONDS = 2.0
_NAMES_SHOWN = 3
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


class ForeignDirectoryError(DrafthouseError, OSError):
    """A directory would be replaced that the kit has not made, or that holds what the kit has not put there."""


class DirectoryInUseError(DrafthouseError, OSError):
    """A directory would be replaced that a running server reads."""


@contextmanager
def replace_directory(path: Path, mark: str, unlisted: Collection[str] = ()) -> Iterator[Path]:
    """Give a new directory beside `path`; it takes the name when the block ends without an error.

    What was there is removed then, unless it is the same, file by file: that is left alone. Whatever ends the block
    early, Ctrl-C included, it stays as it was; a kill at any moment leaves the old directory or the new one. What
    killed calls have left beside `path` is removed. A symbolic link is followed, so what it points to is replaced.

    Args:
        path: the directory.
        mark: name of a file that the block writes, by which the kit knows its own. An existing directory that holds
            other files and not this one, or any that no such call has written, is never replaced.
        unlisted: files that the kit is known to have put into the directory that is there, should it hold no list.

    Raises:
        ForeignDirectoryError: `path` is such a directory, or a file.
        DirectoryInUseError: a server reads it (`in_use`), and it would change.
        OSError: the directory cannot be made or renamed.
    """
    check_replaceable(path, mark, unlisted)
    with directory_beside(path) as partial:
        yield partial
        listed = json.dumps({"files": _names(partial)}, indent=0)
        (partial / INVENTORY).write_text(listed + "\n", encoding="utf-8")
        place = Path(os.path.realpath(path))
        if not _is_same(partial, place):
            take_place(partial, place, mark, unlisted)


@contextmanager
def directory_beside(path: Path) -> Iterator[Path]:
    """Give a new directory beside `path`, which `take_place` may give that name; what is called as it was then goes.

    What killed calls have left beside `path` is removed, too. A symbolic link is followed.

    Raises:
        OSError: the directory cannot be made.
    """
    place = Path(os.path.realpath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(place)
    partial, handle = _new_partial(place)
    try:
        yield partial
    finally:
        _unlock(handle)
        shutil.rmtree(partial, ignore_errors=True)
        os.close(handle)


def check_replaceable(path: Path, mark: str, unlisted: Collection[str] = ()) -> None:
    """Do nothing if `path` is free, empty, or the kit's own: by `mark`, and with no file that the kit has not written.

    Arguments are those of `replace_directory`.

    Raises:
        ForeignDirectoryError: it is something else.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise ForeignDirectoryError(f"{path} is a file; name another directory")
    if not any(path.iterdir()):
        return
    written = _inventory(path, mark)
    if written is None and unlisted:
        written = set(unlisted)
    if written is None:
        raise ForeignDirectoryError(
            f"{path} holds files and no {mark} of drafthouse's, so it was not made by drafthouse and is not replaced; "
            "name another directory"
        )
    others = [name for name in _names(path) if name not in {mark, INVENTORY, *written}]
    if others:
        more = f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
        raise ForeignDirectoryError(
            f"{path} holds {', '.join(others[:_NAMES_SHOWN])}{more}, which drafthouse has not put there and does not "
            "delete; move that elsewhere, or name another directory"
        )


@contextmanager
def in_use(*directories: Path) -> Iterator[None]:
    """Keep directories, as far as they are there, from being replaced by other processes while the block runs."""
    with ExitStack() as held:
        for directory in directories:
            _put_back(Path(os.path.realpath(directory)))
            with suppress(FileNotFoundError):
                _hold(directory, held)
        yield


def take_place(new: Path, place: Path, mark: str | None = None, unlisted: Collection[str] = ()) -> None:
    """Exchange, also while another process does the same with a directory or file of its own.

    Args:
        new: gets the name `place`, and has what was there afterwards.
        place: where it goes.
        mark, unlisted: as of `replace_directory`; None where what is there is known to be the kit's.

    Raises:
        ForeignDirectoryError, DirectoryInUseError, OSError: as `replace_directory`.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        if mark is not None:
            check_replaceable(place, mark, unlisted)
        try:
            with _claimed(place) as ours:
                if ours is None:
                    new.rename(place)
                    return
                if ours:
                    _exchange(new, place)
                    return
        except OSError as error:
            if error.errno not in _OCCUPIED:  # another process was faster
                raise
        if time.monotonic() > end:
            raise DirectoryInUseError(
                f"{place} is read by a running server and would change; stop the server first, or name another place"
            )
        time.sleep(0.01)


@contextmanager
def _claimed(place: Path) -> Iterator[bool | None]:
    """Whether nobody else uses what is at `place`, which nobody else can begin to while the block runs.

    None where nothing is there: what comes meanwhile is not claimed.
    """
    try:
        handle = os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        yield lock(handle) is not False and _is_at(handle, place)
    finally:
        os.close(handle)


def _hold(directory: Path, held: ExitStack) -> None:
    """Open and lock what is at a place now, together with others that do."""
    while True:
        handle = os.open(directory, os.O_RDONLY)
        held.callback(os.close, handle)
        with suppress(OSError):  # NFS
            fcntl.flock(handle, fcntl.LOCK_SH)
        if _is_at(handle, directory):
            return


def _is_at(handle: int, place: Path) -> bool:
    """Whether an open directory has not lost its place to another one meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), place.stat())
    except FileNotFoundError:
        return False


def _exchange(new: Path, place: Path) -> None:
    """Give `new` the name `place`; what was there is called `new` afterwards, if there was anything.

    One step where kernel and file system can (Linux, renameat2(2) with RENAME_EXCHANGE), otherwise two.

    Raises:
        OSError: it cannot be renamed.
    """
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
    with suppress(FileNotFoundError):  # also where another process took it for abandoned
        old.rename(new)


def _exchanged(first: Path, second: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)


def _new_partial(place: Path) -> tuple[Path, int]:
    """A new directory, and a handle that locks it until this process ends."""
    while True:
        partial = name_beside(place)
        partial.mkdir()
        with suppress(FileNotFoundError):  # another process took it for abandoned before it was locked
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
            if lock(handle) is not False and partial.exists():
                return partial, handle
            os.close(handle)


def _remove_abandoned(place: Path) -> None:
    """Remove what processes that were killed have left; one that was killed between two renames is helped out."""
    _put_back(place)
    for old in place.parent.glob(f"{pattern(place)}.old"):
        shutil.rmtree(old, ignore_errors=True)
    for partial in place.parent.glob(pattern(place)):
        with suppress(OSError):  # gone meanwhile, no directory, or somebody else's
            handle = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            if lock(handle):
                shutil.rmtree(partial, ignore_errors=True)
            os.close(handle)


def _put_back(place: Path) -> None:
    """Give a directory its name again if a process was killed between the two renames of an exchange."""
    for old in place.parent.glob(f"{pattern(place)}.old"):
        if not place.exists():
            with suppress(OSError):  # another process was faster
                old.rename(place)


def _unlock(handle: int) -> None:
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)


def _is_same(first: Path, second: Path) -> bool:
    """Whether two directories have the same files with the same content."""
    names = _names(first)
    return names == _names(second) and all(
        filecmp.cmp(first / name, second / name, shallow=False) for name in names
    )


def _names(directory: Path) -> list[str]:
    """All files in a directory and those below it, but what Python keeps of modules that were imported from it."""
    found = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(
        str(path.relative_to(directory))
        for path in found
        if not (path.suffix == ".pyc" and path.parent.name == "__pycache__")
    )


def _inventory(directory: Path, mark: str) -> set[str] | None:
    """The files that the kit has written into a directory; None if it is not the kit's. A mark may list them, too."""
    if not (directory / mark).is_file():
        return None
    for name in (INVENTORY, mark):
        try:
            content = json.loads((directory / name).read_text(encoding="utf-8"))
            return {str(file) for file in content["files"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
