"""SHA-256 of files, and of what a directory of weights holds: compiled engines are named by it.

Example::

    content_hash(Path("models/smollm2-135m"))      # "5f0c...", another one as soon as a weight or a token differs
"""

import hashlib
from functools import lru_cache
from pathlib import Path

_KINDS = (".json", ".jinja", ".model", ".safetensors", ".bin", ".pt", ".pth")
# How a directory came about, which changes nothing that is computed from it.
_HISTORY = ("drafthouse_target.json", "training.json")
_BLOCK_BYTES = 1 << 20


def content_hash(directory: Path) -> str:
    """SHA-256 over names and content of configuration, tokenizer and weights that lie in a directory.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.suffix in _KINDS and path.name not in _HISTORY and path.is_file():
            digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; remembered while inode, size and time of change stay."""
    status = path.stat()
    return _content_sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _content_sha256(path: Path, inode: int, size: int, modified_ns: int) -> str:
    """The three numbers make the remembered hash that of this very content."""
    return read_sha256(path)


def read_sha256(*paths: Path) -> str:
    """SHA-256 over the content of files, in this order; they are read, whatever is remembered of them.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
