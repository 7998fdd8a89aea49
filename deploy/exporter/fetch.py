"""HTTP requests that end in time, whatever the other side does, with one kind of failure: it has no answer.

A deadline for the whole exchange, a most size, and no redirects: what is asked is what was configured.
"""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

MOST_BYTES = 16 * 2**20
"""Of a page, or of a stream with all its events."""
_SECONDS = 10.0


class Unanswered(Exception):
    """The server is away, refused, or answered with something else than was asked for; the text says which."""


def get_text(url: str, seconds: float = _SECONDS) -> str:
    """The body of a page.

    Raises:
        Unanswered: there is none, it is too large, or it is not complete after `seconds`.
    """
    with _answered(url, None, seconds) as answer:
        body = answer.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise Unanswered(f"{url} answered with more than {MOST_BYTES} bytes")
        if answer.length:  # bytes that were announced and did not come
            raise Unanswered(f"{url} broke off")
        return body.decode(errors="replace")


def get_json(url: str) -> Any:
    """The JSON value of a page.

    Raises:
        Unanswered: there is none, or it is no JSON.
    """
    body = get_text(url)
    try:
        return json.loads(body or "null")
    except (ValueError, RecursionError):
        raise Unanswered(f"{url} answered with something that is not JSON") from None


def post_events(url: str, fields: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    """The JSON objects of a `text/event-stream` answer, as they come.

    Raises:
        Unanswered: no answer, an error within the stream, more than MOST_BYTES, or no end after `seconds`.
    """
    left = MOST_BYTES
    with _answered(url, json.dumps(fields).encode(), seconds) as answer:
        while line := answer.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise Unanswered(f"{url} streams more than {MOST_BYTES} bytes")
            if line.startswith(b"data:"):
                yield _event(url, line)


def _event(url: str, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line[len(b"data:") :])
    except (ValueError, RecursionError):
        raise Unanswered(f"{url} sent an event that is not JSON") from None
    if not isinstance(event, dict) or "error" in event:
        raise Unanswered(f"{url} answered: {event.get('error') if isinstance(event, dict) else event}")
    return event


@contextlib.contextmanager
def _answered(url: str, body: bytes | None, seconds: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a GET, or to a POST of JSON, whose status is 200."""
    end = time.monotonic() + seconds
    connection = _connection(url, seconds)
    cutting: threading.Timer | None = None
    try:
        connection.connect()
        # A timeout of the socket holds for a piece, however small; this cuts off whatever goes on when time is over.
        cutting = threading.Timer(max(0.0, end - time.monotonic()), _cut, [connection.sock])
        cutting.daemon = True
        cutting.start()
        path = urlsplit(url)
        connection.request(
            "GET" if body is None else "POST",
            f"{path.path or '/'}{'?' if path.query else ''}{path.query}",
            body,
            {"Content-Type": "application/json", "Connection": "close"},
        )
        answer = connection.getresponse()
        if answer.status != 200:
            told = answer.read(300).decode(errors="replace").strip()
            raise Unanswered(f"{url} answered with status {answer.status}: {told}")
        yield answer
        if time.monotonic() >= end:  # what was cut off may look like an end
            raise TimeoutError
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= end:
            raise Unanswered(f"{url} has not answered within {seconds:g} s") from None
        raise Unanswered(f"{url} does not answer: {error or type(error).__name__}") from None
    finally:
        if cutting:
            cutting.cancel()
        connection.close()


def _connection(url: str, seconds: float) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        return kind(parts.hostname or "", parts.port, timeout=seconds)
    except (ValueError, http.client.HTTPException) as error:
        raise Unanswered(f"{url} is no address: {error}") from None


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
