"""Content hashes of files and directories, remembered by inode, size and times of change.

A 70B checkpoint takes minutes to hash, so a file is read again only when one of those numbers differs from what
it was hashed with. The memory is a JSON file and may be deleted at any time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deployments.files.hashes import read_sha256
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json


class Digests:
    """Hashes of paths, kept in a file."""

    def __init__(self, memory: Path, on_file: Callable[[Path], None] = lambda path: None) -> None:
        """Use and extend the file `memory`; `on_file` hears of each file that is read."""
        self._memory, self._on_file = memory, on_file
        self._known = _load(memory)

    def of(self, path: Path) -> str:
        """SHA-256 of a file's content, or of the names and contents of all files in a directory.

        Hidden files and folders of a directory do not count (download caches, version control), nor do compiled
        Python files.

        Raises:
            FileNotFoundError: there is nothing at `path`. OSError: it cannot be read.
        """
        if not path.is_dir():
            return self._file(path)
        digest = hashlib.sha256()
        for file in _files(path):
            digest.update(f"{file.relative_to(path)}\0{self._file(file)}\n".encode())
        return digest.hexdigest()

    def save(self) -> None:
        """Write down what was learnt."""
        write_json(self._memory, self._known, indent=None)

    def _file(self, path: Path) -> str:
        status = path.stat()
        stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        key = str(path.resolve())
        known = self._known.get(key)
        if known is not None and known[:-1] == stamp:
            return str(known[-1])
        self._on_file(path)
        digest = read_sha256(path)
        self._known[key] = [*stamp, digest]
        return digest


def _files(directory: Path) -> Iterator[Path]:
    """All files below, in a fixed order; links are followed, as the commands that read them do."""
    for root, folders, names in os.walk(directory, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        yield from (Path(root) / name for name in sorted(names) if not name.startswith("."))


def _load(memory: Path) -> dict[str, Any]:
    try:
        return read_json_object(memory, ValueError)
    except ValueError:
        return {}
