"""Files that appear whole or not at all.

A file is written beside its place and renamed. So a kill at any moment leaves the old one or the new one, and a reader
sees either.

Example::

    with replace_file(folder / "profile.png") as partial:
        plot(partial)
    write_json(folder / "profile.json", found)
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; it takes the name when the block ends without an error.

    Folders above it are made, and what killed calls have left beside it is removed. A link is replaced, not what it
    points to: that may be somebody's only copy.

    Raises:
        OSError: the file cannot be made or renamed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        _lock(handle)
        yield partial
        os.fsync(handle)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; one that is there is replaced at once.

    Raises:
        OSError: it cannot be written.
    """
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file, as `write_text` does.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


def _lock(handle: int) -> bool:
    """Say that somebody writes to a file; False if that has been said."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system cannot (NFS): better to leave a file than to take one away
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}.partial"):
        with suppress(OSError):
            handle = os.open(partial, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    partial.unlink()
            finally:
                os.close(handle)
