"""Files that appear whole or not at all.

A file is written beside its place and renamed. So a kill at any moment leaves the old one or the new one, and a reader
sees either.

Example::

    with replace_file(folder / "profile.png") as partial:
        plot(partial)
    write_json(folder / "profile.json", found)
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from deployments.files.partial import lock, name_beside, pattern


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
    partial, handle = _new_partial(path)
    try:
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


def _new_partial(path: Path) -> tuple[Path, int]:
    """An empty file, and a handle that locks it until this process ends."""
    while True:
        partial = name_beside(path)
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if lock(handle) is not False and partial.exists():
            return partial, handle
        os.close(handle)  # another process took it for abandoned before it was locked


def _remove_abandoned(path: Path) -> None:
    """Remove what processes that were killed have left."""
    for partial in path.parent.glob(pattern(path)):
        with suppress(OSError):
            handle = os.open(partial, os.O_RDWR | os.O_NOFOLLOW)
            try:
                if lock(handle):  # where the file system cannot, better to leave a file than to take one away
                    partial.unlink()
            finally:
                os.close(handle)
