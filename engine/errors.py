"""What goes wrong with one request; the engine and the other requests are not affected."""

from deployments.errors import DrafthouseError


class RequestError(DrafthouseError, ValueError):
    """The request alone is wrong."""


class QueueFullError(RequestError):
    """The waiting queue is full; the same request may succeed later."""


class StoppedError(DrafthouseError, RuntimeError):
    """The request was ended by another one that named it."""


class TooLongError(DrafthouseError, RuntimeError):
    """The request has taken longer than a request may."""


class StoppingError(DrafthouseError, RuntimeError):
    """The server is being stopped; the same request may succeed later, or elsewhere."""
