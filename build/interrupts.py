"""Being asked to terminate, as `kill` and a stopping container ask, is Ctrl-C: what was begun is ended in order."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminate_is_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt in the block; without effect outside the main thread, which gets no signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
