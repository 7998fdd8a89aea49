"""Clients of a service under attack: what they asked, and how it ended."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from tests.deploy.throng import Throng

FIXED = {"text_input": "one two three four", "max_tokens": 32}
_PROMPTS = ("one two three", "a b a b a b a b", "the", "x " * 500)
# Streams a long answer, slowly, until it is killed.
_VICTIM = """
import sys, time, urllib.request
body = b'{"text_input": "one two", "max_tokens": 8000, "min_tokens": 8000, "stream": true}'
address = f"http://127.0.0.1:{sys.argv[1]}/v2/models/ensemble/generate_stream"
while True:
    try:
        for line in urllib.request.urlopen(urllib.request.Request(address, body, {"Content-Type": "application/json"})):
            time.sleep(0.01)
    except OSError:
        time.sleep(0.2)
"""


@dataclass
class Tally:
    """How requests have ended."""

    answered: int = 0
    failed: int = 0
    wrong: int = 0
    late: list[str] = field(default_factory=list)
    slowest: float = 0.0


class Traffic(Throng):
    """Clients, and processes that can be hit; as a context manager it ends those in any case."""

    def __init__(
        self, port: int, expected: str, *, limit: float, threads: int = 6, victims: int = 2, seed: int = 0
    ) -> None:
        """`expected`: the answer to FIXED; `limit`: seconds of a request."""
        self.tally = Tally()
        self.victims = [_victim(port) for _ in range(victims)]
        self._port, self._expected, self._limit = port, expected, limit
        self._lock = threading.Lock()
        super().__init__(threads, seed)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for victim in self.victims:
            victim.kill()
            victim.wait()

    def replace(self, victim: subprocess.Popen[bytes]) -> None:
        """End a client that was hit, and take another one."""
        victim.kill()
        victim.wait()
        self.victims[self.victims.index(victim)] = _victim(self._port)

    def run(self, chance: random.Random) -> None:
        while not self.ended.is_set():
            fields, stream = (FIXED, False) if chance.random() < 0.3 else _question(chance)
            begun = time.monotonic()
            told, text = "", None
            try:
                leave = stream and chance.random() < 0.3
                text = _ask(self._port, fields, stream=stream, leave=leave, seconds=self._limit)
            except (OSError, http.client.HTTPException, ValueError) as error:
                told = f"{type(error).__name__}: {error}"
            seconds = time.monotonic() - begun
            with self._lock:
                self._count(fields, text, told, seconds)
            if told:
                self.ended.wait(0.2)

    def _count(self, fields: dict[str, Any], text: str | None, told: str, seconds: float) -> None:
        tally = self.tally
        tally.slowest = max(tally.slowest, seconds)
        if seconds >= self._limit:
            tally.late.append(f"{fields} after {seconds:.0f} s: {told}")
        if text is None:
            tally.failed += 1
        else:
            tally.answered += 1
            tally.wrong += fields is FIXED and text != self._expected


def ask_fixed(port: int, seconds: float = 5.0) -> str | None:
    """The answer to FIXED, None if there is none."""
    try:
        return _ask(port, FIXED, stream=False, leave=False, seconds=seconds)
    except (OSError, http.client.HTTPException, ValueError):
        return None


def _question(chance: random.Random) -> tuple[dict[str, Any], bool]:
    stream = chance.random() < 0.5
    fields: dict[str, Any] = {
        "text_input": chance.choice(_PROMPTS),
        "max_tokens": chance.choice((1, 16, 200, 2000)),
        "stream": stream,
    }
    more: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "seed": chance.randrange(2**32)},
        {"stop_words": ["qz", "zq"]},
        {"return_log_probs": True},
        {"num_draft_tokens": 0},
    ]
    return fields | chance.choice(more), stream


def _ask(port: int, fields: dict[str, Any], *, stream: bool, leave: bool, seconds: float) -> str:
    """The text of the answer; of the first event only if the client is to leave then."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        path = "/v2/models/ensemble/generate" + "_stream" * stream
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(answer.read(500).decode(errors="replace"))
        content = answer.readline() if leave else answer.read()
    finally:
        connection.close()
    text = ""
    for line in content.decode().splitlines():
        if line.strip():
            item = json.loads(line.removeprefix("data: "))
            if "error" in item:
                raise OSError(item["error"])
            text += item["text_output"]
    return text


def _victim(port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _VICTIM, str(port)], stderr=subprocess.DEVNULL)
