"""Files on disk: hashes, links, space, and directories that appear whole or not at all."""

import errno
import hashlib
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from build.targets.errors import TargetError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OCCUPIED = (errno.EEXIST, errno.ENOTEMPTY)
# Directory entries and JSON files beside the weights.
_SPARE_BYTES = 32 * 2**20
_BLOCK_BYTES = 2**20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    status = path.stat()
    return _content_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _content_sha256(path: Path, inode: int, size: int, modified_ns: int) -> str:
    """The three numbers make the remembered hash that of this very content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, destination: Path) -> None:
    """Hard link where the file system can, copy where it cannot; symbolic links are followed."""
    source = source.resolve()
    try:
        destination.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, destination)


def require_space(directory: Path, num_bytes: int) -> None:
    """Refuse to begin what cannot fit.

    Raises:
        TargetError: the file system of `directory` has less than `num_bytes` free.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes + _SPARE_BYTES:
        raise TargetError(
            f"{directory} has {free // 10**6} MB free, but about {num_bytes // 10**6} MB are needed; free "
            "some space or choose a directory on another disk"
        )


@contextmanager
def writing_errors(directory: Path) -> Iterator[None]:
    """Turn operating-system errors of the block into a TargetError that names the directory."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise TargetError(
                f"{directory}: the disk is full; free some space and run the command again"
            ) from error
        raise TargetError(f"{directory} cannot be written: {error}") from error


@contextmanager
def complete_directory(directory: Path) -> Iterator[Path]:
    """Give a new directory beside `directory` that takes its name when the block ends without an error.

    An existing `directory` is replaced. Whatever ends the block early, Ctrl-C included, the new directory is
    removed and an existing one is left as it was.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        yield partial
        _replace(directory, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(directory: Path, new: Path) -> None:
    """Rename `new` to `directory`, also while another process does the same with a directory of its own."""
    old = new.with_suffix(".old")
    try:
        while True:
            with suppress(FileNotFoundError):
                directory.rename(old)
            try:
                new.rename(directory)
                return
            except OSError as error:
                if error.errno not in _OCCUPIED:
                    raise
            shutil.rmtree(old, ignore_errors=True)  # another process was faster; its directory is next
    except BaseException:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
