"""How requests reach Triton: gRPC and HTTP, each for threads and for asyncio, behind the protocols below.

One request is one call, and one call is one gRPC stream or one HTTP connection of its own. Triton can
multiplex requests over a single bidirectional stream, as `tritonclient`'s `start_stream` does, but there a
cancellation takes all of them down and one slow reader holds the others up. A gRPC stream of its own costs
one HTTP/2 frame, shares the channel's connection, needs no background thread, and dies alone.

Every call streams, also where the caller wants the whole text only: Triton's HTTP server (2.51) notices
that a client is gone when it fails to write to it, so a silent request could not be cancelled, and neither
can what an ensemble's running step does unless its next response meets the cancellation on the way. gRPC
tells the model at once; over HTTP a cancellation takes effect with the next chunk.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Protocol

from client import errors
from client.contract import Declared, Outputs, Request

CONTROL_TIMEOUT = 10.0
"""Seconds that a question about health or metadata, which needs no model, may take."""


class Deadline:
    """A point in time by which a request must have ended; without one, never."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self, at_most: float | None = None) -> float | None:
        """Seconds left, `at_most` if given; None for no limit.

        Raises:
            DeadlineExceeded: nothing is left.
        """
        if self._end is None:
            return at_most
        left = self._end - time.monotonic()
        if left <= 0:
            raise errors.past_deadline(self.seconds)
        return left if at_most is None else min(left, at_most)

    def missed(self, address: str, protocol: str) -> errors.ClientError:
        """The error for a question that got no answer in :meth:`remaining` (CONTROL_TIMEOUT) seconds."""
        if self.seconds is not None and self.seconds < CONTROL_TIMEOUT:
            return errors.past_deadline(self.seconds)
        return errors.unreachable(address, protocol, f"no answer in {CONTROL_TIMEOUT:g} s")


class CallState:
    """One request under way: what every call keeps of it."""

    def __init__(self, address: str, request: Request, deadline: Deadline) -> None:
        self._address = address
        self._request = request
        self._deadline = deadline
        self._cancelled = False

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise errors.cancelled(self._request.request_id)

    def _unless_cancelled(self, failure: errors.ClientError) -> errors.ClientError:
        """The error to raise for `failure`, which may be how the end of a cancelled request looks from here."""
        return errors.cancelled(self._request.request_id) if self._cancelled else failure

    def _late(self) -> errors.ClientError:
        return errors.past_deadline(self._deadline.seconds, self._request.request_id)


class Call(Protocol):
    """One request under way."""

    def responses(self) -> Generator[Outputs, None, None]:
        """The responses as they arrive, up to the last; raises `ClientError`."""

    def cancel(self) -> None:
        """End the call on both sides; `responses` then raises `Cancelled`. From any thread, at any time."""


class Transport(Protocol):
    """A way to one server, for threads."""

    def start(self, request: Request, deadline: Deadline) -> Call:
        """A call that sends `request` when its responses are first asked for."""

    def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """The inputs that `model` declares, by name; raises `InvalidRequest` if there is no such model."""

    def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """The parameters in `model`'s configuration, by name; raises as `declared_inputs`."""

    def is_ready(self, model: str) -> bool:
        """Whether the server is up and `model` can be asked; False also where nothing answers."""

    def close(self) -> None:
        """Give up all connections."""


class AsyncCall(Protocol):
    """As :class:`Call`."""

    def responses(self) -> AsyncGenerator[Outputs, None]:
        """As :meth:`Call.responses`."""

    def cancel(self) -> None:
        """As :meth:`Call.cancel`, from the event loop's thread."""


class AsyncTransport(Protocol):
    """As :class:`Transport`, for asyncio."""

    def start(self, request: Request, deadline: Deadline) -> AsyncCall:
        """As :meth:`Transport.start`."""

    async def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""

    async def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""

    async def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""

    async def close(self) -> None:
        """As :meth:`Transport.close`."""
