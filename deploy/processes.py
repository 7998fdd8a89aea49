"""The processes of a server, as Linux' `/proc` tells them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PAUSE_SECONDS = 0.01
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Process:
    """One process.

    Attributes:
        pid: its number.
        state: a letter; R and S run or wait, D waits and cannot be killed, T is stopped, Z has ended and waits for its
            parent to notice.
        parent, session: numbers of other processes.
        name: of its program, the first 15 letters.
    """

    pid: int
    state: str
    parent: int
    session: int
    name: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """Its command line; empty once it has ended."""
        try:
            content = (_PROC / str(self.pid) / "cmdline").read_bytes()
        except OSError:
            return ()
        return tuple(part.decode(errors="replace") for part in content.split(b"\0") if part)


def find(pid: int) -> Process | None:
    """The process with that number."""
    try:
        content = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    before, _, after = content.rpartition(")")
    state, parent, _group, session = after.split()[:4]
    return Process(pid, state, int(parent), int(session), before.partition("(")[2])


def of_session(session: int) -> list[Process]:
    """The processes of a session that have not ended. A server begins one; so it knows those that it has started."""
    return [found for found in _all() if found.session == session and found.state != "Z"]


def end_session(session: int) -> None:
    """Kill the processes of a session, but not this one, and return when there is none any more.

    One in uninterruptible sleep (state D: a disk or a driver does not answer) is not waited for longer than 10 s; it
    ends when it wakes.
    """
    end = time.monotonic() + _END_SECONDS
    while others := [found for found in of_session(session) if found.pid != os.getpid()]:
        for process in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > end:
            return
        time.sleep(_PAUSE_SECONDS)


def _all() -> Iterator[Process]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (found := find(int(entry.name))) is not None:
            yield found
