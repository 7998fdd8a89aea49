"""Limits of a request: what nobody may be waiting for any more is bounded, where it can be known or not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

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
ONE_SHOT_TOKENS, REQUEST_SECONDS, QUEUE_SECONDS = 40, 2.5, 0.3
DOORS = ("ensemble", "tensorrt_llm_bls")
DRAFTING = {"method": "anpd", "drafted_by": "bls", "draft_length": 4}


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("limited")
    with deployed(
        folder, "byte-level", speculation=DRAFTING, max_batch_size=2, max_one_shot_tokens=ONE_SHOT_TOKENS
    ) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Everything here takes longer than it may, however fast the machine is."""
    with deployed(
        tmp_path_factory.mktemp("hurried"),
        "byte-level",
        speculation=DRAFTING,
        max_batch_size=2,
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


def endless(door: str) -> dict[str, Any]:
    if door == "tensorrt_llm":
        return token_inputs([5, 6], 8000, min_tokens=8000, streaming=True)
    return text_inputs("one two", max_tokens=8000, min_tokens=8000, stream=True)


@pytest.mark.parametrize("door", ["tensorrt_llm", *DOORS])
def test_a_request_ends_after_its_time(hurried: Deployment, door: str) -> None:
    """A stream that drafts in the BLS is made of many calls, which count together."""
    begun = time.monotonic()
    with GrpcCaller(hurried.grpc) as caller:
        stream = responses(caller.open(door, endless(door)))
        with pytest.raises(
            ServerRefusal, match=r"ended after .* 2.5 s is the limit \(engine\.max_request_sec"
        ):
            list(stream)
    assert time.monotonic() - begun >= REQUEST_SECONDS
    wait_until(hurried.is_idle, "it holds nothing")


def test_a_request_does_not_wait_for_longer_than_it_may(hurried: Deployment) -> None:
    """Three where there are two places: one of them waits, whichever comes last."""
    told = []
    with GrpcCaller(hurried.grpc) as caller:
        streams = [caller.open("tensorrt_llm", endless("tensorrt_llm")) for _ in range(3)]
        for stream in streams:
            with pytest.raises(ServerRefusal) as refused:
                list(responses(stream))
            told.append(str(refused.value))
    waited = [text for text in told if "queue is full: the request has waited for" in text]
    assert len(waited) == 1 and "try again in 1 s" in waited[0], told
    wait_until(hurried.is_idle, "nothing runs any more")
