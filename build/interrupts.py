"""Being asked to end is Ctrl-C, whoever asks: what was begun is ended in order.

`kill` and a stopping container ask by SIGTERM, a terminal that is closed by SIGHUP, Ctrl-\\ by SIGQUIT.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def terminate_is_interrupt() -> Iterator[None]:
    """Those signals raise KeyboardInterrupt in the block, but for one that is ignored, as SIGHUP is under `nohup`.

    Without effect outside the main thread, which gets no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in _ASKING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
