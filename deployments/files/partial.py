"""What is written beside its place: its name, and the lock that tells it from what a killed process has left."""

from __future__ import annotations

import fcntl
import glob
import uuid
from pathlib import Path

_DIGITS = 8


def name_beside(place: Path) -> Path:
    """A name that nothing has yet."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex[:_DIGITS]}.partial")


def pattern(place: Path) -> str:
    """For `Path.glob`: all such names, and none that ends alike but is of another program."""
    return f".{glob.escape(place.name)}.{'[0-9a-f]' * _DIGITS}.partial"


def lock(handle: int) -> bool | None:
    """Lock a file or directory; False if another process holds it, None where the file system cannot (NFS)."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
