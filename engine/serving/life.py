"""How a model shows that it lives, and sees that its server is being stopped: by files in the server's directory.

`drafthouse serve` names the directory (`DRAFTHOUSE_PLACE`, see `deploy.server`) and watches it (`deploy.watch`). A
model that was killed, stopped or stuck cannot tell anybody, and Triton 2.51 does not: the server stays ready. So each
shows every second that it is there, by touching a file. Under anybody else's tritonserver nothing is shown.

What lives long also has to give back what it does not use: glibc keeps freed memory for whoever may ask for more, in
pieces between what is still used, so that a process has at last what its busiest moments took together.
"""

import contextlib
import ctypes
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from engine.errors import StoppingError

_PLACE = "DRAFTHOUSE_PLACE"
_SIGNS = "signs"
_STOPPING = "stopping"
_SECONDS = 1.0
_SIGNS_BEFORE_MEMORY_IS_GIVEN_BACK = 60


class SignOfLife:
    """A file that is touched as long as something lives."""

    def __init__(self, name: str) -> None:
        """Give the first sign of `name`.

        Raises:
            OSError: there is no room for the file.
        """
        place = os.environ.get(_PLACE)
        self._path = Path(place) / _SIGNS / name if place else None
        if self._path is not None:
            self._path.parent.mkdir(exist_ok=True)
            self._path.touch()

    def show(self) -> None:
        """Show that it lives still; whatever has become of the file, whoever shows it goes on living."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.touch()

    def end(self) -> None:
        """It ends as it should."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


class Life:
    """Shows from a thread of its own that a model's process runs, and gives back memory that it does not use."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        """Begin, for the instance that Triton's `initialize` arguments name."""
        self._sign = SignOfLife(arguments["model_instance_name"])
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="life", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The model is unloaded."""
        self._ended.set()
        self._thread.join()
        self._sign.end()

    def _run(self) -> None:
        shown = 0
        while not self._ended.wait(_SECONDS):
            self._sign.show()
            shown += 1
            if shown % _SIGNS_BEFORE_MEMORY_IS_GIVEN_BACK == 0:
                give_back_memory()


def give_back_memory() -> None:
    """Let the system have what this process has freed; nothing where the C library is not glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def refuse_when_stopping() -> None:
    """Refuse what has not begun.

    Raises:
        StoppingError: the server is being stopped.
    """
    place = os.environ.get(_PLACE)
    if place and (Path(place) / _STOPPING).exists():
        raise StoppingError(
            "the server is stopping and takes no new requests; try again later, or another one"
        )
