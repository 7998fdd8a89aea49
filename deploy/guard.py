"""Stands between `drafthouse serve` and the server, so that of the server nothing stays when `serve` is gone.

A program of its own, since nothing in `serve` can act once that has been killed. Its standard input is a pipe from
`serve`: first comes a line with what is to be started (`Order`), then nothing; when the pipe ends, so has `serve`.
When the server has ended, by itself or because of that, the guard kills what it has left running, removes the files
of its place (`deploy.place`), and ends with its status. SIGTERM is passed on to the server. Should the guard itself be
killed, so is the server, and `serve` does the rest.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from deploy.place import remove
from deploy.processes import end_session

_SET_CHILD_SUBREAPER = 36
_SET_PARENT_DEATH_SIGNAL = 1


@dataclass(frozen=True)
class Order:
    """What to start.

    Attributes:
        command: program and arguments.
        environment: the whole of it.
        place: name of the server's place.
        locks: of the place, inherited.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    place: str
    locks: Sequence[int]

    def line(self) -> bytes:
        """For the guard's standard input."""
        return json.dumps(asdict(self)).encode() + b"\n"


def main() -> int:
    """Follow the order on standard input; the server's exit status, or 128 and the signal that has killed it."""
    received, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, _nothing)  # not SIG_IGN, which the server would inherit
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    order = Order(**json.loads(line))
    library = ctypes.CDLL(None)
    library.prctl(_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(
        order.command,
        env=dict(order.environment),
        stdin=subprocess.DEVNULL,
        pass_fds=tuple(order.locks),
        preexec_fn=lambda: library.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL)),  # one thread: safe
    )
    signal.signal(signal.SIGTERM, lambda *_: _pass_on(server.pid))
    status = _wait(server.pid, received)
    signal.signal(signal.SIGTERM, _nothing)  # its number may be another process' from now on
    end_session(os.getpid())
    remove(order.place)
    return status


def _nothing(*_: object) -> None:
    """A signal that only wakes this process up."""


def _pass_on(server: int) -> None:
    # Not by `Popen`, which looks first whether the server has ended: `_wait` would never see that it has.
    with contextlib.suppress(ProcessLookupError):
        os.kill(server, signal.SIGTERM)


def _wait(server: int, woken: int) -> int:
    """Wait for the end of the server, or of standard input; the server's status, or 1."""
    while True:
        ready, _, _ = select.select([sys.stdin.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 512)
        while (ended := _reaped()) is not None:
            pid, status = ended
            if pid == server:
                return status if status >= 0 else 128 - status
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 512):
            return 1


def _reaped() -> tuple[int, int] | None:
    """A child that has ended, orphans that have become children included, and its status."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, os.waitstatus_to_exitcode(status)) if pid else None


if __name__ == "__main__":
    sys.exit(main())
