"""How fast requests leave an engine, from which one that finds the queue full learns when to come again."""

import math
import time
from collections import deque
from collections.abc import Callable

_REMEMBERED = 32
_UNKNOWN_SECONDS = 5
_MOST_SECONDS = 60


class Pace:
    """Reckons with the last few requests that have ended."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: a clock in seconds."""
        self._now = now
        self._ends: deque[float] = deque(maxlen=_REMEMBERED)

    def note_end(self) -> None:
        """A request has ended."""
        self._ends.append(self._now())

    def seconds(self, requests: int) -> int:
        """In about how many whole seconds `requests` requests will have ended, 1 or more, within a minute."""
        passed = self._now() - self._ends[0] if len(self._ends) > 1 else 0.0
        if not passed:
            return _UNKNOWN_SECONDS
        return min(_MOST_SECONDS, max(1, math.ceil(requests * passed / (len(self._ends) - 1))))
