"""Short messages between the models of one server, past Triton.

Triton's own way from model to model, a call, has two faults in 2.51 that others pay for. A thread that waits for the
next response of a call takes up Python's lock again while it holds the response's (`ResponseIterator::Next`); when
another thread begins a call meanwhile, and one more response comes, each of three threads waits for the next, and the
process is stuck. And a call that only says that a client has gone is one more that can crash its caller. So

 * whoever answers a call says so after each response (`Teller`), and the caller asks Triton for none before it has
   heard of it (`engine.serving.calls`), so that nobody ever waits in there;
 * that a client has gone is said here as well.

Each process that listens has a socket in a directory of the server's, with a random name, or the model's.
"""

import contextlib
import os
import re
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

_PLACE = "DRAFTHOUSE_PLACE"
_FOLDER = "mail"
_LONGEST = 256
_PATIENCE_SECONDS = 5.0
_PAUSE_SECONDS = 0.05
_FULL_SECONDS = 1.0
_NAME = re.compile(r"\w[\w.-]*")
NAME_DIGITS = 8
"""Of a caller's name, with which the ids of its calls begin."""
_LAST = "."


def _folder() -> Path:
    """Of this server: in its place, or under a tritonserver that somebody else has started by the server's number."""
    if place := os.environ.get(_PLACE):
        return Path(place) / _FOLDER
    return Path(tempfile.gettempdir()) / f"drafthouse-{_FOLDER}-{os.getuid()}-{os.getppid()}"


def _made_folder() -> Path:
    """As above, and there.

    Raises:
        PermissionError: it is another user's, who could read what is said, or a link to files of other kinds.
    """
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a directory of this user's; remove it")
    return folder


class Mailbox:
    """Takes messages in a thread of its own until it is closed."""

    def __init__(self, name: str, take: Callable[[str], None]) -> None:
        """Open the box; one of that name that was left behind is replaced.

        Args:
            name: under which others find it.
            take: gets each message.
        """
        self._path, self._take = _made_folder() / name, take
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with _near(self._path) as path:
            self._socket.bind(path)
        self._inode = self._path.lstat().st_ino
        self._thread = threading.Thread(target=self._run, name="mail", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more."""
        self._socket.shutdown(socket.SHUT_RD)  # wakes the thread also where the box itself has been removed
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            if self._path.lstat().st_ino == self._inode:  # else it is that of a model loaded anew meanwhile
                self._path.unlink()
        self._socket.close()  # no sooner, or another box could have its inode
        with contextlib.suppress(OSError):  # others still have theirs
            self._path.parent.rmdir()

    def _run(self) -> None:
        while text := self._socket.recv(_LONGEST).decode():
            self._take(text)


def send(name: str, text: str) -> bool:
    """Put a message into a box; whether it is in there. Waits a moment while the box is full."""
    if not _NAME.fullmatch(name):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own, _near(_folder() / name) as path:
            own.settimeout(_FULL_SECONDS)  # whoever is stopped does not hold up those who answer others
            own.sendto(text.encode(), path)
    except OSError:  # there is none, or nobody behind it
        return False
    return True


@contextlib.contextmanager
def _near(path: Path) -> Iterator[str]:
    """A path of a socket that is short enough for the system, however long the directory's is."""
    handle = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{handle}/{path.name}"
    finally:
        os.close(handle)


class Teller:
    """A request's response sender that tells the caller, if it listens, of each response and of the last one.

    Triton's `send` returns when the response has reached the caller's process.
    """

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._identity = request.request_id()
        self._listens = len(self._identity) == 4 * NAME_DIGITS

    def send(self, response: Any = None, flags: int = 0) -> None:
        """As Triton's."""
        self._sender.send(response, flags) if response is not None else self._sender.send(flags=flags)
        if self._listens:
            last = bool(flags & pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            self._listens = send(self._identity[:NAME_DIGITS], self._identity + _LAST * last)

    def is_cancelled(self) -> bool:
        """As Triton's."""
        return bool(self._sender.is_cancelled())


class Arrivals:
    """Of a call: how many responses its caller has heard of, and has asked for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heard = self._asked = 0

    def hear(self, *, last: bool) -> None:
        """One more has come; after the last one the end can be asked for as well."""
        with self._changed:
            self._heard += 1 + last
            self._changed.notify()

    def wait(self) -> None:
        """Return when the next one can be asked for: the first at once, for Triton waits for that itself.

        Returns after some seconds in any case: of an error of Triton's own nobody tells. Where more than one response
        that came was never heard of, nobody tells of the others either: what is left is a pause in which they come.
        """
        with self._changed:
            if self._asked:
                told = self._heard >= self._asked - 1
                patience = _PATIENCE_SECONDS if told else _PAUSE_SECONDS
                self._changed.wait_for(lambda: self._heard > self._asked, patience)
            self._asked += 1


def heard(text: str) -> tuple[str, bool]:
    """The id of a call of which a `Teller` has told, and whether the response was the last one."""
    return text.removesuffix(_LAST), text.endswith(_LAST)
