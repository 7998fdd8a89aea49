"""Which requests have waited or run for longer than the limits allow.

Whoever closes the connection of a request that is not streamed is not noticed: Triton's HTTP server reads nothing from
a connection while its request runs (2.51 pauses it, `evhtp_request_pause`), and does not tell a running step of an
ensemble. So what nobody waits for any more can only be bounded.
"""

import math
import time
from collections.abc import Iterable
from typing import Protocol

from engine.errors import QueueFullError, RequestError, TooLongError
from engine.running import RunningRequest


class Limits(Protocol):
    """Seconds from a request's arrival until it must have begun, and until it must have ended; None: no limit."""

    @property
    def max_queue_seconds(self) -> float | None: ...

    @property
    def max_request_seconds(self) -> float | None: ...


def late(
    waiting: Iterable[RunningRequest], running: Iterable[RunningRequest], limits: Limits
) -> list[tuple[RunningRequest, Exception]]:
    """Requests that have to end now, each with the error that it ends with."""
    now = time.monotonic()
    queue, whole = limits.max_queue_seconds, limits.max_request_seconds
    found: list[tuple[RunningRequest, Exception]] = []
    if whole is not None:
        found += [
            (item, _too_long(now - item.arrived, whole))
            for item in (*running, *waiting)
            if now - item.arrived > whole
        ]
    if queue is not None:
        found += [
            (item, _waited(now - item.arrived, queue))
            for item in waiting
            if queue < now - item.arrived <= (whole or math.inf) and not item.request.continued
        ]
    return found


def _waited(passed: float, limit: float) -> QueueFullError:
    return QueueFullError(
        f"the queue is full: the request has waited for {passed:.1f} s, and {limit:g} s is the limit "
        f"(engine.max_queue_seconds); try again in {max(1, round(limit))} s"
    )


def _too_long(passed: float, limit: float) -> TooLongError:
    return TooLongError(
        f"the request was ended after {passed:.1f} s; {limit:g} s is the limit (engine.max_request_seconds)"
    )


def check_one_shot(tokens: int, limit: int | None) -> None:
    """Refuse a request that is not streamed and asks for too much.

    Raises:
        RequestError: says what would be right.
    """
    if limit is None or tokens <= limit:
        return
    if not limit:
        raise RequestError("this server answers streams only (engine.max_one_shot_tokens is 0); set stream")
    raise RequestError(
        f"max_tokens is {tokens}; a request that is not streamed may ask for {limit} "
        "(engine.max_one_shot_tokens); stream it, or ask for less"
    )


class Deadline:
    """Of a request that is made of many calls, none of which is too long."""

    def __init__(self, arrived: float, seconds: float | None) -> None:
        """`arrived`: by the monotonic clock."""
        self._arrived, self._seconds = arrived, seconds

    def check(self) -> None:
        """Look at the clock.

        Raises:
            TooLongError: it has passed.
        """
        passed = time.monotonic() - self._arrived
        if self._seconds is not None and passed > self._seconds:
            raise _too_long(passed, self._seconds)
