"""What the clients of a soak ask, how they ask it, and what they get."""

from __future__ import annotations

import http.client
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from numpy.typing import NDArray

from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_vanish,
    responses,
    text_inputs,
    write_message,
)

DOORS = ("ensemble", "tensorrt_llm_bls")
_PROMPTS = ("one two three", "a b a b a b a b", "the", "x " * 500, "éàü ßø 漢字 " * 20, "zz")
_LENGTHS = (1, 16, 16, 60, 60, 200, 600)
_READ = ("text_output", "cum_log_probs")


class Refused(Exception):
    """The service has answered with an error."""


@dataclass(frozen=True)
class Answer:
    """A text, and the sum of its tokens' log-probabilities (0 if they were not asked for)."""

    text: str
    log_prob: float

    def like(self, other: Answer) -> bool:
        """Whether it is the same answer."""
        return self.text == other.text and math.isclose(
            self.log_prob, other.log_prob, rel_tol=1e-4, abs_tol=1e-4
        )


def questions(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different questions, as fields of `/generate`."""
    chance = random.Random(seed)
    return [_question(chance, number) for number in range(count)]


def _question(chance: random.Random, number: int) -> dict[str, Any]:
    kinds: list[dict[str, Any]] = [
        {},
        {"num_draft_tokens": 0},
        {"temperature": 0.8, "seed": number, "num_draft_tokens": 0},
        {"temperature": 1.1, "top_k": 40, "top_p": 0.95, "seed": number, "num_draft_tokens": 0},
        {"stop_words": [chance.choice("aeiou "), "qz"]},
        {"stop_words": [f"{chance.randrange(10**6)}" for _ in range(300)]},
        {"return_log_probs": True},
    ]
    asked = {"text_input": f"{number} {chance.choice(_PROMPTS)}", "max_tokens": chance.choice(_LENGTHS)}
    return asked | kinds[number % len(kinds)]


class Asker:
    """A client that asks in one way after another."""

    def __init__(self, http_port: int, grpc_port: int, seconds: float) -> None:
        """`seconds`: the limit of a request."""
        self._port, self._seconds = http_port, seconds
        self._grpc = GrpcCaller(f"127.0.0.1:{grpc_port}")
        self.ways: Mapping[str, Callable[[str, Mapping[str, Any]], Answer | None]] = {
            "one-shot": self.one_shot,
            "HTTP stream": self._stream,
            "gRPC stream": self._grpc_stream,
            "HTTP stream, left": self._leave_stream,
            "gRPC stream, cancelled": self._cancel_grpc,
            "one-shot, abandoned": self._abandon,
        }

    def close(self) -> None:
        """Give up the connection."""
        self._grpc.close()

    def one_shot(self, door: str, fields: Mapping[str, Any]) -> Answer:
        """The whole answer at once."""
        with _posted(self._port, f"{door}/generate", fields, self._seconds) as answer:
            return _joined([json.loads(answer.read())])

    def _stream(self, door: str, fields: Mapping[str, Any]) -> Answer:
        with _posted(
            self._port, f"{door}/generate_stream", {**fields, "stream": True}, self._seconds
        ) as answer:
            return _joined([*_events(answer)])

    def _leave_stream(self, door: str, fields: Mapping[str, Any]) -> None:
        with _posted(
            self._port, f"{door}/generate_stream", {**fields, "stream": True}, self._seconds
        ) as answer:
            _joined([next(_events(answer))])

    def _grpc_stream(self, door: str, fields: Mapping[str, Any]) -> Answer:
        try:
            parts = [dict(part) for part in responses(self._open(door, fields))]
        except (ServerRefusal, grpc.RpcError) as error:
            raise Refused(str(error)) from None
        return _joined([{name: _plain(part[name]) for name in _READ} for part in parts])

    def _cancel_grpc(self, door: str, fields: Mapping[str, Any]) -> None:
        stream = self._open(door, fields)
        try:
            next(responses(stream), None)
        except (ServerRefusal, grpc.RpcError) as error:
            raise Refused(str(error)) from None
        finally:
            stream.cancel()

    def _abandon(self, door: str, fields: Mapping[str, Any]) -> None:
        body = json.dumps(fields).encode()
        http_vanish(f"127.0.0.1:{self._port}", f"/v2/models/{door}/generate", body, read=0)

    def _open(self, door: str, fields: Mapping[str, Any]) -> Any:
        others = {name: value for name, value in fields.items() if name != "text_input"}
        message = write_message(door, text_inputs(fields["text_input"], stream=True, **others))
        return self._grpc.stub.ModelStreamInfer(iter([message]), timeout=self._seconds)


@contextmanager
def _posted(
    port: int, path: str, fields: Mapping[str, Any], seconds: float
) -> Iterator[http.client.HTTPResponse]:
    """An answer to a POST, whose connection is closed at the end of the block whatever is still to come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(
            "POST", f"/v2/models/{path}", json.dumps(fields), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise Refused(answer.read(500).decode(errors="replace"))
        yield answer
    finally:
        connection.close()


def _events(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in answer:
        if line.strip():
            yield json.loads(line.decode().removeprefix("data: "))


def _joined(parts: list[dict[str, Any]]) -> Answer:
    for part in parts:
        if "error" in part:
            raise Refused(part["error"])
    if not parts:
        raise Refused("no response at all")
    text = "".join(part["text_output"] for part in parts)
    return Answer(text, float(parts[-1]["cum_log_probs"]))


def _plain(value: NDArray[Any]) -> Any:
    """The one value of a tensor."""
    item = value.ravel()[0]
    return item.decode() if isinstance(item, bytes) else float(item)
