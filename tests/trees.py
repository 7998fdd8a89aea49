"""Everything that lies in a folder, to be compared before and after."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def state_of(folder: Path, *, without: Path | None = None) -> dict[str, str]:
    """By path: the hash of a file's content, where a link leads, or that it is a directory.

    Args:
        folder: what is looked at.
        without: a path in it that may change.
    """
    found = {}
    for root, folders, files in os.walk(folder):
        here = Path(root)
        if without is not None and without.name in folders and here == without.parent:
            folders.remove(without.name)
        for name in [*folders, *files]:
            path = here / name
            if path == without:
                continue
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            elif path.is_dir():
                found[str(path)] = "directory"
            else:
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
