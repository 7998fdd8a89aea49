"""2,000 malformed or hostile requests: each is answered, nothing breaks, and nothing is left behind.

Every request is a sound one with one thing spoilt. It has to be answered by an error that says something, or, where
the spoilt thing does no harm, by what the sound request gets. Clients that vanish are not answered; for them it
counts that the server forgets them.
"""

from __future__ import annotations

import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_post,
    http_vanish,
    responses,
    text_inputs,
    token_inputs,
    whole_text,
    write_message,
)
from tests.end_to_end.deployment import VOCABULARY, Deployment, wait_until

pytestmark = pytest.mark.triton

REQUESTS = 2_000
PROMPT, MAX_TOKENS = "for number in range(", 12
Outcome = str


@dataclass(frozen=True)
class Target:
    """What is attacked: a text-level model of a server."""

    served: Deployment
    model: str


Attack = Callable[[Target, GrpcCaller, random.Random], "Outcome | None"]

_NUMBERS = (-1, -(2**31), 2**31 - 1, 10**6, 0)
_FLOATS = (float("nan"), float("inf"), -1.0, 1e38, -0.0)
_INTEGER_FIELDS = (
    "max_tokens",
    "top_k",
    "min_tokens",
    "beam_width",
    "num_return_sequences",
    "num_draft_tokens",
)
_FLOAT_FIELDS = ("temperature", "top_p", "repetition_penalty", "length_penalty", "frequency_penalty")
_KINDS: tuple[Any, ...] = (np.int64, np.uint32, np.float64, np.float16, np.bool_, np.int8)
_SHAPES = ((), (1,), (0,), (1, 0), (2, 1), (1, 2), (1, 1, 1), (3, 3))


def test_hostile_requests(served: Deployment) -> None:
    check(served, ("ensemble", "tensorrt_llm_bls"), REQUESTS)
    wait_until(served.is_idle, "no request runs and all KV blocks are free", seconds=60)


def test_hostile_requests_while_the_bls_drafts(speculating_deployment: Deployment) -> None:
    served = speculating_deployment
    check(served, ("tensorrt_llm_bls", "bls_anpd"), REQUESTS // 2)
    for model in ("tensorrt_llm", "tensorrt_llm_draft"):
        wait_until(partial(served.is_idle, model), f"{model} is idle, its KV blocks are free", seconds=60)


def check(served: Deployment, models: Sequence[str], requests: int) -> None:
    """`requests` attacks on these models; sound requests in between must not notice."""
    with GrpcCaller(served.grpc) as caller:
        normal = _text(caller, models[0])
        generator = random.Random(2026)
        outcomes: Counter[str] = Counter()
        for number in range(requests):
            attack = ATTACKS[number % len(ATTACKS)]
            answer = attack(Target(served, generator.choice(models)), caller, generator)
            assert answer is None or answer == normal or answer.startswith("error: "), (
                number,
                attack,
                answer,
            )
            kind = "left" if answer is None else "answered" if answer == normal else "refused"
            outcomes[kind] += 1
        assert [_text(caller, model) for model in models] == [normal] * len(models)
    assert outcomes["refused"] > requests / 2
    assert outcomes["answered"] > 0
    assert outcomes["left"] > 0


def _text(caller: GrpcCaller, model: str) -> str:
    return whole_text(caller.infer(model, text_inputs(PROMPT, max_tokens=MAX_TOKENS)))


def _outcome(ask: Callable[[], str]) -> Outcome:
    try:
        return ask()
    except ServerRefusal as error:
        assert str(error).strip(), "an error without a message"
        return f"error: {error}"
    except grpc.RpcError as error:
        assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "no answer"
        assert error.code() is not grpc.StatusCode.UNAVAILABLE, "the server is gone"
        return f"error: {error.details()}"


def _sound(**spoilt: Any) -> dict[str, Any]:
    return text_inputs(PROMPT, **{"max_tokens": MAX_TOKENS, **spoilt})


def _spoilt_number(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    # Greedy, so that what is answered can be compared: a top_k alone samples.
    inputs = _sound(temperature=0.0, **{generator.choice(_INTEGER_FIELDS): generator.choice(_NUMBERS)})
    # A huge number of tokens or none is refused; what is left gets the sound request's answer.
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _spoilt_float(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    value = generator.choice(_FLOATS)
    inputs = _sound(**{generator.choice(_FLOAT_FIELDS): value})
    inputs["top_k"] = np.array([[1]], np.int32)  # greedy, so that what is answered can be compared
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _spoilt_type(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    inputs = _sound(top_k=1, seed=3, stream=True)
    name = generator.choice(("max_tokens", "top_k", "seed", "stream"))
    inputs[name] = inputs[name].astype(generator.choice(_KINDS))
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _spoilt_shape(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    inputs = _sound(top_k=1)
    name, shape = generator.choice(("text_input", "max_tokens", "top_k")), generator.choice(_SHAPES)
    inputs[name] = np.resize(inputs[name], shape)
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _missing_tensor(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    inputs = _sound()
    del inputs[generator.choice(list(inputs))]
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _spoilt_text(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    texts = (
        b"",
        b"\xff\xfe\x00",
        b"\xe4\xbd",
        b"\xed\xa0\x80",
        b"x" * 100_000,
        bytes(generator.randbytes(40)) + b"\xff",
    )
    inputs = text_inputs(generator.choice(texts), max_tokens=MAX_TOKENS)
    return _outcome(lambda: whole_text(caller.infer(target.model, inputs)))


def _spoilt_tokens(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    spoilt = generator.choice(
        (
            token_inputs([-5, 3]),
            token_inputs([VOCABULARY + 7]),
            token_inputs([5, 6], input_lengths=9),
            token_inputs([5, 6], input_lengths=-1),
            token_inputs([5, 6], input_lengths=0),
            token_inputs([5, 6], stop_words_list=np.array([[[5, 6], [9, -1]]], np.int32)),
            token_inputs([5, 6], stop_words_list=np.array([[[5, 6, 7]]], np.int32)),
            token_inputs([5, 6], end_id=VOCABULARY * 2),
            token_inputs([5, 6], draft_input_ids=np.array([[3, VOCABULARY]], np.int32)),
            token_inputs([5, 6], draft_input_ids=np.array([[3] * 8], np.int32)),
            token_inputs([5, 6], draft_input_ids=np.array([[3, -1, 3]], np.int32)),
            token_inputs([5, 6], draft_logits=np.ones((1, 2, VOCABULARY), np.float32)),
            token_inputs([5, 6], continued_tokens=2),
            token_inputs([5, 6], continued_tokens=-1),
            token_inputs([5, 6], max_tokens=-3),
        )
    )
    return _outcome(lambda: f"tokens: {caller.infer('tensorrt_llm', spoilt)}")


def _spoilt_message(target: Target, caller: GrpcCaller, generator: random.Random) -> Outcome:
    message = write_message(generator.choice((target.model, "no_such_model", "")), _sound())
    if message.model_name == target.model:
        position = generator.randrange(len(message.raw_input_contents))
        content = message.raw_input_contents[position]
        message.raw_input_contents[position] = content[: generator.randrange(len(content))]
    return _outcome(lambda: whole_text(list(responses(caller.send(message)))))


def _spoilt_json(target: Target, _: GrpcCaller, generator: random.Random) -> Outcome:
    fields: dict[str, Any] = {"text_input": PROMPT, "max_tokens": MAX_TOKENS}
    body = generator.choice(
        (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"text_input": NaN}',
            b"[" * 5_000,
            generator.randbytes(64),
            json.dumps({**fields, "max_tokens": "many"}).encode(),
            json.dumps({**fields, "text_input": 7}).encode(),
            json.dumps({**fields, "text_input": [PROMPT, PROMPT]}).encode(),
            json.dumps({**fields, "max_tokens": None}).encode(),
            json.dumps({**fields, "temperature": {"a": 1}}).encode(),
            json.dumps({**fields, "max_tokens": 1e300}).encode(),
            json.dumps({"max_tokens": MAX_TOKENS}).encode(),
            json.dumps({**fields, "bad_words": ["a"]}).encode(),
            json.dumps(fields).encode()[:-3],
        )
    )
    path = generator.choice(("generate", "generate_stream"))
    status, answer = http_post(target.served.http, f"/v2/models/{target.model}/{path}", body)
    assert status != 200 or b"error" in answer, (body[:80], status, answer[:200])
    assert answer.strip(), "an error without a message"
    return f"error: {answer[:80]!r}"


def _wrong_length(target: Target, _: GrpcCaller, generator: random.Random) -> None:
    """Promise more bytes than are sent, and hang up."""
    port = target.served.server.http_port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        length = generator.choice((10_000, 2**40))
        head = (
            f"POST /v2/models/{target.model}/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"text_input":')


def _vanish_grpc(target: Target, caller: GrpcCaller, generator: random.Random) -> None:
    stream = caller.open(target.model, text_inputs(PROMPT, max_tokens=4_000, stream=True))
    for _response in range(generator.randrange(4)):
        next(iter(stream), None)
    stream.cancel()


def _vanish_http(target: Target, _: GrpcCaller, generator: random.Random) -> None:
    body = json.dumps({"text_input": PROMPT, "max_tokens": 400, "stream": True}).encode()
    http_vanish(
        target.served.http, f"/v2/models/{target.model}/generate_stream", body, generator.randrange(0, 2_000)
    )


ATTACKS: tuple[Attack, ...] = (
    *(_spoilt_number, _spoilt_float, _spoilt_type, _spoilt_shape, _missing_tensor, _spoilt_text),
    *(_spoilt_tokens, _spoilt_message, _spoilt_json, _wrong_length, _vanish_grpc, _vanish_http),
)
