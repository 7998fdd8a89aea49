"""A server's log file, which is bounded: whoever can make the server write may otherwise fill the disk.

The server writes to the end of the file itself, so what it has written is copied aside and cut off.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import IO

MOST_BYTES = 32 * 2**20
"""Of the log; as much again lies beside it, in the file with `.1` at its end."""
# A Python model's exception, as Triton writes it down in one line.
_REFUSAL = re.compile(r"failed to load '([^']+)' version \d+: \w+: (.+?)\\n\\nAt:\\n")


def previous_log(path: Path) -> IO[bytes]:
    """A new log to write to; what is there from the last start is kept beside it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size:
            path.replace(_beside(path))
    return path.open("ab")


def bound(path: Path, most: int = MOST_BYTES) -> None:
    """Put the log aside if it is too long. Without room for a copy it is cut off all the same."""
    try:
        if not path.is_file() or path.stat().st_size <= most:
            return
        with contextlib.suppress(OSError):
            shutil.copyfile(path, _beside(path))
        os.truncate(path, 0)
    except OSError:
        return


def refusals(lines: Iterable[str]) -> list[str]:
    """Why models did not load, as far as they have said so themselves, without where in the code that was."""
    found = (_REFUSAL.search(line) for line in lines)
    told = (f"{match[1]}: {match[2]}" for match in found if match)
    return [reason.replace(r"\n", " ") for reason in dict.fromkeys(told)]


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".1")
