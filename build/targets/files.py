"""Files on disk: links, space, and what is told of a disk that is full or closed."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build.targets.errors import TargetError
from deployments.files.directories import DirectoryInUseError, ForeignDirectoryError

# Another file system, one without links, one that has too many to this file, or a file of somebody else.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_BLOCK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Directory entries and JSON files beside the weights.
_SPARE_BYTES = 32 * 2**20


def link_or_copy(source: Path, destination: Path) -> None:
    """Hard link where the file system can, copy where it cannot; symbolic links are followed.

    Raises:
        FileExistsError: `destination` is there. It is not written to, for it may be a link to somebody's only copy.
        OSError: it cannot be written.
    """
    source = source.resolve()
    try:
        destination.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        copy_new(source, destination)


def copy_new(source: Path, destination: Path) -> None:
    """Copy a file to a place where none is.

    Raises:
        FileExistsError, OSError: as `link_or_copy`.
    """
    with source.open("rb") as old, destination.open("xb") as new:
        shutil.copyfileobj(old, new, _BLOCK_BYTES)


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
    except (ForeignDirectoryError, DirectoryInUseError) as error:
        raise TargetError(str(error)) from error
    except OSError as error:
        if error.errno in _FULL:
            raise TargetError(
                f"{directory}: the disk is full; free some space and run the command again"
            ) from error
        raise TargetError(f"{directory} cannot be written: {error}") from error
