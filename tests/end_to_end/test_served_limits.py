"""Limits of a request: what nobody may be waiting for any more is bounded, where it can be known or not."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from client import DrafthouseClient
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    http_vanish,
    responses,
    text_inputs,
    token_inputs,
)
from tests.end_to_end.deployment import Deployment, deployed, wait_until

pytestmark = pytest.mark.triton
ONE_SHOT_TOKENS, REQUEST_SECONDS, QUEUE_SECONDS = 40, 3.0, 1.0
DOORS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(
        tmp_path_factory.mktemp("limited"),
        "byte-level",
        speculation={"method": "anpd", "drafted_by": "bls", "draft_length": 4},
        max_batch_size=2,
        max_one_shot_tokens=ONE_SHOT_TOKENS,
        max_request_seconds=REQUEST_SECONDS,
        max_queue_seconds=QUEUE_SECONDS,
    ) as deployment:
        yield deployment


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("door", DOORS)
def test_one_shots_may_not_ask_for_much(limited: Deployment, door: str, drafts: int) -> None:
    fields = {"text_input": "one two", "num_draft_tokens": drafts * (door == "tensorrt_llm_bls")}
    assert http_generate(limited.http, {**fields, "max_tokens": ONE_SHOT_TOKENS}, door)[0]["text_output"]
    with pytest.raises(
        ServerRefusal, match="max_tokens is 41; a request that is not streamed may ask for 40"
    ):
        http_generate(limited.http, {**fields, "max_tokens": ONE_SHOT_TOKENS + 1}, door)
    streamed = http_generate(limited.http, {**fields, "max_tokens": 100, "stream": True}, door, stream=True)
    assert len(streamed) > 1


def test_the_client_streams_underneath(limited: Deployment) -> None:
    with DrafthouseClient(limited.grpc) as client:
        result = client.generate("one two", max_tokens=100, min_tokens=100)
    assert result.num_output_tokens == 100


def test_abandoned_one_shots_end_with_their_tokens(limited: Deployment) -> None:
    body = b'{"text_input": "one two", "max_tokens": 40, "min_tokens": 40}'
    for _ in range(6):
        http_vanish(limited.http, "/v2/models/ensemble/generate", body, read=0)
    assert http_generate(limited.http, {"text_input": "one", "max_tokens": 4})[0]["text_output"]
    wait_until(limited.is_idle, "the abandoned ones have ended")


@pytest.mark.parametrize("door", ["tensorrt_llm", *DOORS])
def test_a_request_ends_after_its_time(limited: Deployment, door: str) -> None:
    """A stream that drafts in the BLS is made of many calls, which count together."""
    endless = (
        token_inputs([5, 6], 8000, min_tokens=8000, streaming=True)
        if door == "tensorrt_llm"
        else text_inputs("one two", max_tokens=8000, min_tokens=8000, stream=True)
    )
    begun = time.monotonic()
    with GrpcCaller(limited.grpc) as caller:
        received = responses(caller.open(door, endless))
        assert next(received)
        with pytest.raises(
            ServerRefusal, match=r"ended after .* 3 s is the limit \(engine\.max_request_seconds\)"
        ):
            list(received)
    assert time.monotonic() - begun >= REQUEST_SECONDS
    wait_until(limited.is_idle, "it holds nothing")


def test_a_request_does_not_wait_for_longer_than_it_may(limited: Deployment) -> None:
    with GrpcCaller(limited.grpc) as caller:
        endless = token_inputs([5, 6], 8000, min_tokens=8000, streaming=True)
        streams = [caller.open("tensorrt_llm", endless) for _ in range(2)]
        for stream in streams:
            next(responses(stream))
        with pytest.raises(
            ServerRefusal, match=r"queue is full: the request has waited for .*try again in 1 s"
        ):
            http_generate(limited.http, {"text_input": "one", "max_tokens": 4})
        for stream in streams:
            stream.cancel()
    wait_until(limited.is_idle, "nothing runs any more")
