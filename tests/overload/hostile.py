"""Clients who mean no good, each in a way of its own."""

from __future__ import annotations

import http.client
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

_PAUSE_SECONDS = 0.25
_SECONDS = 30.0


def novel(port: int, chance: random.Random) -> None:
    """A text of megabytes."""
    text = "".join(chance.choice(("word ", "é", "x", "\u6f22")) for _ in range(1000)) * chance.randrange(
        500, 2000
    )
    _post(port, {"text_input": text, "max_tokens": 8})


def stop_words(port: int, chance: random.Random) -> None:
    """Two hundred thousand of them, or as many as are taken, which are never met."""
    count = chance.choice((200_000, 1000))
    words = [f"{number:06}"[-6:] for number in range(count)]
    _post(port, {"text_input": "one two", "max_tokens": 64, "stop_words": words})


def abandoned(port: int, chance: random.Random) -> None:
    """A long answer at once, for which nobody waits: as much as is taken."""
    tokens = chance.choice((2000, 64))
    body = json.dumps({"text_input": "one two", "max_tokens": tokens, "min_tokens": tokens}).encode()
    head = f"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        _pause(chance)


def left(port: int, chance: random.Random) -> None:
    """A long stream that is left after its first event, or before."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        fields = {"text_input": "x " * 500, "max_tokens": 4000, "stream": True}
        connection.request("POST", "/v2/models/ensemble/generate_stream", json.dumps(fields))
        if chance.random() < 0.5:
            connection.getresponse().readline()
    finally:
        connection.close()


def nonsense(port: int, chance: random.Random) -> None:
    """What is refused as soon as it is looked at."""
    wrong: list[dict[str, Any]] = [
        {"max_tokens": -1},
        {"temperature": "hot"},
        {"top_p": 7.0},
        {"max_token": 3},
    ]
    _post(port, {"text_input": "one", "max_tokens": 4, **chance.choice(wrong)})


KINDS: tuple[Callable[[int, random.Random], None], ...] = (novel, stop_words, abandoned, left, nonsense)


def _post(port: int, fields: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    try:
        connection.request("POST", "/v2/models/ensemble/generate", json.dumps(fields))
        connection.getresponse().read()
    finally:
        connection.close()


def _pause(chance: random.Random) -> None:
    time.sleep(chance.uniform(0, 2 * _PAUSE_SECONDS))
