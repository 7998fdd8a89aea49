"""HTTP requests with one kind of failure: the other side has no answer."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

_SECONDS = 10.0


class Unanswered(Exception):
    """The server is away, refused, or answered with something else than was asked for; the text says which."""


def get_text(url: str) -> str:
    """The body of a page.

    Raises:
        Unanswered: there is none.
    """
    with _opened(urllib.request.Request(url)) as answer:
        return _read(url, answer)


def get_json(url: str) -> Any:
    """The JSON value of a page.

    Raises:
        Unanswered: there is none, or it is no JSON.
    """
    body = get_text(url)
    try:
        return json.loads(body or "null")
    except ValueError:
        raise Unanswered(f"{url} answered with something that is not JSON") from None


def post_events(url: str, fields: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    """The JSON objects of a `text/event-stream` answer, as they come.

    Raises:
        Unanswered: no answer, an error within the stream, or silence for `seconds`.
    """
    request = urllib.request.Request(
        url, json.dumps(fields).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with _opened(request, seconds) as answer:
        try:
            for line in answer:
                if line.startswith(b"data:"):
                    yield _event(url, line)
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{url} broke off: {error}") from None


def _event(url: str, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line[len(b"data:") :])
    except ValueError:
        raise Unanswered(f"{url} sent an event that is not JSON") from None
    if not isinstance(event, dict) or "error" in event:
        raise Unanswered(f"{url} answered: {event.get('error') if isinstance(event, dict) else event}")
    return event


def _opened(request: urllib.request.Request, seconds: float = _SECONDS) -> http.client.HTTPResponse:
    try:
        answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=seconds)
    except urllib.error.HTTPError as error:
        with error:
            told = error.read(300).decode(errors="replace").strip()
        raise Unanswered(f"{request.full_url} answered with status {error.code}: {told}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{request.full_url} does not answer: {error}") from None
    return answer


def _read(url: str, answer: http.client.HTTPResponse) -> str:
    try:
        return answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(f"{url} broke off: {error}") from None
