"""What can go wrong between a caller and the served model, as one small tree of exceptions.

Triton tells why a request failed in its message only: inside a gRPC stream it sends no status (asked for
one by the header `triton_grpc_error`, version 2.51 crashes under load), and over HTTP every failure of a
generation has status 400. So :func:`from_server` reads the message. Everything a client method raises on
purpose is a :class:`ClientError`:

    try:
        result = client.generate("Hello", deadline=2.0)
    except errors.QueueFull:
        ...  # back off and try again
    except errors.ClientError as error:
        print(error)
"""

from __future__ import annotations

import re

MOST_BYTES = 64 * 2**20
"""Of one response: a body, a message, or an event of a stream. Far more than the longest answer has."""
# As the kit's engine words it.
_RETRY_AFTER = re.compile(r"try again in (\d+) s\b")


class ClientError(Exception):
    """Base of every error that the client raises.

    Attributes:
        request_id: the request's id as the server's log shows it; None where no request was made yet.
    """

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


class InvalidRequest(ClientError, ValueError):
    """The request itself is wrong; sending it again cannot help.

    Attributes:
        field: the argument that is wrong, e.g. ``"max_tokens"``; None where the server did not say which.
    """

    def __init__(self, message: str, *, field: str | None = None, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        self.field = field


class ServerUnavailable(ClientError):
    """Nothing usable answers there: no server, the wrong port, a model still loading, a lost connection."""


class QueueFull(ClientError):
    """The server's queue is full, or has enough of this address's. Nothing was computed: trying again later is safe.

    Attributes:
        retry_after: seconds after which to try again, as the server reckons; None where it did not say.
    """

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message, request_id=request_id)
        found = _RETRY_AFTER.search(message)
        self.retry_after = float(found[1]) if found else None


class DeadlineExceeded(ClientError, TimeoutError):
    """The request's deadline passed. The request has been cancelled on the server."""


class Cancelled(ClientError):
    """The request was cancelled, by :meth:`Stream.cancel` or by the server."""


class ServerError(ClientError):
    """The server failed while it worked on a request that it had accepted."""


# The wordings are those of Triton's core, front ends and Python backend; the first two also those of the
# kit's engine and of TensorRT-LLM's backend. The first that fits decides.
_BY_MESSAGE = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"queue is full|exceeds maximum queue size|max_queue_size|^too many requests", QueueFull),
        (r"server is (stopping|shutting down)", ServerUnavailable),
        (r"message larger than max", ServerError),
        (r"invalid request|unexpected (inference input|shape)|missing .*input|data-type is", InvalidRequest),
        (r"unknown model: '.*' is not found", InvalidRequest),
        (r"stub process .* is not healthy|failed to process the request\(s\)", ServerError),
        (r"no available versions|not ready|not at ready state", ServerUnavailable),
        (r"request timeout expired|deadline exceeded", DeadlineExceeded),
        (r"\bcancell?ed\b", Cancelled),
    )
)

# By name of the gRPC status, for what has one: questions about models, and failures of gRPC itself.
_BY_CODE: dict[str, type[ClientError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": InvalidRequest,
    "UNAVAILABLE": ServerUnavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "RESOURCE_EXHAUSTED": QueueFull,
    "CANCELLED": Cancelled,
}


def from_server(message: str, code: str | None = None, request_id: str | None = None) -> ClientError:
    """The error for a failure that the server reported.

    Args:
        message: the server's message, kept word for word.
        code: name of the gRPC status, if there is one; it decides where the message says nothing known.
        request_id: attached to the error.
    """
    by_message = next((kind for pattern, kind in _BY_MESSAGE if pattern.search(message)), None)
    kind = by_message or _BY_CODE.get(code or "", ServerError)
    return kind(message, request_id=request_id)


def unreachable(address: str, protocol: str, reason: str, request_id: str | None = None) -> ServerUnavailable:
    """The error for an address where no Triton answers `protocol`, with what to do about it."""
    other = "HTTP" if protocol == "grpc" else "gRPC"
    return ServerUnavailable(
        f"no Triton server answers {protocol} at {address} ({reason}). "
        "Start one with `drafthouse serve SPEC`, or check host and port "
        f"(Triton's defaults: 8001 for gRPC, 8000 for HTTP; is this the {other} port?)",
        request_id=request_id,
    )


def connection_lost(address: str, reason: str, request_id: str | None = None) -> ServerUnavailable:
    """The error for a connection that broke after the request was sent."""
    return ServerUnavailable(
        f"lost the connection to {address} before the request ended ({reason}); its output is incomplete",
        request_id=request_id,
    )


def too_long(address: str, what: str, request_id: str | None = None) -> ServerError:
    """The error for a server that sends more than any answer has."""
    return ServerError(
        f"{address} sent {what} of more than {MOST_BYTES // 2**20} MiB, which no answer needs; is this Triton?",
        request_id=request_id,
    )


def past_deadline(deadline: float | None, request_id: str | None = None) -> DeadlineExceeded:
    """The error for a request that took longer than `deadline` seconds."""
    return DeadlineExceeded(
        f"the request did not end within its deadline of {deadline:g} s and was cancelled"
        if deadline is not None
        else "the server gave up on the request because its own time limit passed",
        request_id=request_id,
    )


def cancelled(request_id: str | None = None) -> Cancelled:
    """The error for a request that this client cancelled."""
    return Cancelled("the request was cancelled", request_id=request_id)
