"""Whoever goes away gives back what the request holds, at once: nobody waits for an output that nobody reads."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from client import DrafthouseClient, errors
from tests.end_to_end.calls import (
    GrpcCaller,
    ServerRefusal,
    http_generate,
    http_vanish,
    responses,
    text_inputs,
    token_inputs,
    whole_text,
)
from tests.end_to_end.deployment import MAX_BATCH_SIZE, Deployment, wait_until
from tests.end_to_end.reference import Reference

pytestmark = pytest.mark.triton

# Long enough that it cannot end by itself while a test looks: more than ten thousand steps.
ENDLESS = 32_000
# Steps that a whole output takes at least: with one drafted token a step emits two at most, and some do not draft.
WHOLE = 12_000
PROMPT = "one two three"
MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm")
of_each_model = pytest.mark.parametrize("model", MODELS)


def endless(model: str) -> dict[str, Any]:
    """Inputs of a stream that goes on until somebody ends it."""
    if model == "tensorrt_llm":
        return token_inputs([5, 6, 7], ENDLESS, streaming=True, num_draft_tokens=1)
    return text_inputs(PROMPT, max_tokens=ENDLESS, stream=True, num_draft_tokens=1)


class Watch:
    """Counts the steps that the engine makes for an endless stream: all but a few of them draft one token."""

    def __init__(self, served: Deployment) -> None:
        self._served = served
        self._before = self._drafted()

    def steps(self) -> int:
        return self._drafted() - self._before

    def _drafted(self) -> int:
        return int(self._served.metrics()["trtllm_spec_decode_num_draft_tokens_total"])


@pytest.fixture
def watch(served: Deployment) -> Watch:
    return Watch(served)


def expect_early_end(served: Deployment, watch: Watch) -> None:
    """The request has not run to its end; how many steps it takes to notice depends on the machine."""
    wait_until(served.is_idle, "the abandoned request holds nothing")
    assert watch.steps() < WHOLE


def test_the_watch_counts_steps(grpc_caller: GrpcCaller, watch: Watch) -> None:
    grpc_caller.infer("ensemble", text_inputs(PROMPT, max_tokens=800, num_draft_tokens=1))
    assert watch.steps() > 800 * WHOLE / ENDLESS


@of_each_model
def test_cancelled_stream(served: Deployment, grpc_caller: GrpcCaller, watch: Watch, model: str) -> None:
    stream = grpc_caller.open(model, endless(model))
    received = responses(stream)
    for _ in range(3):
        next(received)
    wait_until(lambda: served.running() == 1, "the request shows in the metrics")
    stream.cancel()
    expect_early_end(served, watch)


@of_each_model
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_client_leaves_its_loop(served: Deployment, watch: Watch, model: str, protocol: Any) -> None:
    address = served.grpc if protocol == "grpc" else served.http
    with DrafthouseClient(address, protocol=protocol, model=model) as client:
        options = {"max_tokens": ENDLESS, "num_draft_tokens": 1}
        stream = (
            client.stream_tokens([5, 6, 7], **options)  # type: ignore[arg-type]
            if model == "tensorrt_llm"
            else client.stream(PROMPT, **options)  # type: ignore[arg-type]
        )
        for _ in stream:
            break
        expect_early_end(served, watch)


@of_each_model
def test_http_client_that_vanishes(served: Deployment, watch: Watch, model: str) -> None:
    inputs = endless(model)
    fields = {name: values.ravel().tolist() for name, values in inputs.items() if values.dtype != object}
    body = json.dumps({**fields, **({"text_input": PROMPT} if "text_input" in inputs else {})}).encode()
    http_vanish(served.http, f"/v2/models/{model}/generate_stream", body, read=2000)
    expect_early_end(served, watch)


DYING_CLIENT = """
import os, sys
from tests.end_to_end.calls import GrpcCaller, responses, text_inputs
inputs = text_inputs("one", max_tokens=32000, stream=True, num_draft_tokens=1)
stream = responses(GrpcCaller(sys.argv[1]).open(sys.argv[2], inputs))
next(stream)
os._exit(7)
"""


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_process_that_dies(served: Deployment, watch: Watch, model: str) -> None:
    ended = subprocess.run([sys.executable, "-c", DYING_CLIENT, served.grpc, model], check=False, timeout=180)
    assert ended.returncode == 7
    expect_early_end(served, watch)


@of_each_model
def test_deadline(served: Deployment, watch: Watch, model: str) -> None:
    with DrafthouseClient(served.grpc, model=model) as client, pytest.raises(errors.DeadlineExceeded):
        if model == "tensorrt_llm":
            client.generate_tokens([5, 6, 7], max_tokens=ENDLESS, num_draft_tokens=1, deadline=0.15)
        else:
            client.generate(PROMPT, max_tokens=ENDLESS, num_draft_tokens=1, deadline=0.15)
    expect_early_end(served, watch)


@of_each_model
def test_waiting_request_that_is_cancelled(served: Deployment, grpc_caller: GrpcCaller, model: str) -> None:
    running = [grpc_caller.open("tensorrt_llm", endless("tensorrt_llm")) for _ in range(MAX_BATCH_SIZE)]
    wait_until(lambda: served.running() == MAX_BATCH_SIZE, "all slots are taken")
    waiting = grpc_caller.open(model, endless(model))
    wait_until(lambda: served.running() == MAX_BATCH_SIZE + 1, "one request waits")
    waiting.cancel()
    for stream in running:
        stream.cancel()
    wait_until(served.is_idle, "nothing runs or waits")


@of_each_model
def test_batch_that_is_cancelled(
    served: Deployment, grpc_caller: GrpcCaller, watch: Watch, model: str
) -> None:
    if model == "tensorrt_llm":
        inputs = {name: values.repeat(3, axis=0) for name, values in endless(model).items()}
    else:
        inputs = text_inputs(PROMPT, "x =", "zz", max_tokens=ENDLESS, stream=True, num_draft_tokens=1)
    stream = grpc_caller.open(model, inputs)
    next(responses(stream))
    wait_until(lambda: served.running() == 3, "all rows show in the metrics")
    stream.cancel()
    expect_early_end(served, watch)


def test_others_are_not_disturbed(served: Deployment, grpc_caller: GrpcCaller, reference: Reference) -> None:
    leaving = [grpc_caller.open("ensemble", endless("ensemble")) for _ in range(4)]
    for stream in leaving:
        next(responses(stream))
    staying = responses(grpc_caller.open("ensemble", text_inputs(PROMPT, max_tokens=200, stream=True)))
    answers = [next(staying)]
    for stream in leaving:
        stream.cancel()
        answers.append(next(staying))
    assert whole_text([*answers, *staying]) == reference.text(PROMPT, 200)


def test_vanished_reader_of_a_whole_answer(served: Deployment, reference: Reference) -> None:
    """Triton sees that it is gone only when it answers, so the request runs to its end; then all is free."""
    body = json.dumps({"text_input": PROMPT, "max_tokens": 200}).encode()
    http_vanish(served.http, "/v2/models/ensemble/generate", body, read=0)
    wait_until(served.is_idle, "the request has ended")
    answer = http_generate(served.http, {"text_input": PROMPT, "max_tokens": 16})
    assert answer[0]["text_output"] == reference.text(PROMPT)


def stop_by(caller: GrpcCaller, request_id: str) -> Callable[[], None]:
    inputs = {**token_inputs([0], 1), "stop": endless("tensorrt_llm")["streaming"]}
    return lambda: [*caller.infer("tensorrt_llm", inputs, request_id)].clear()


def test_stop_request_as_nvidia_clients_send_it(
    served: Deployment, grpc_caller: GrpcCaller, watch: Watch
) -> None:
    stream = responses(grpc_caller.open("tensorrt_llm", endless("tensorrt_llm"), "17"))
    next(stream)
    stop_by(grpc_caller, "18")()
    next(stream)
    stop_by(grpc_caller, "17")()
    with pytest.raises(ServerRefusal, match="the request was stopped, by another one with its id"):
        list(stream)
    expect_early_end(served, watch)


def test_nobody_stops_what_has_an_id_that_can_be_guessed(speculating_deployment: Deployment) -> None:
    with GrpcCaller(speculating_deployment.grpc) as caller:
        stream = caller.open("tensorrt_llm", endless("tensorrt_llm"), "17")
        received = responses(stream)
        next(received)
        with pytest.raises(ServerRefusal, match=r"others could guess the id '17'.*serving\.stop_by_id"):
            stop_by(caller, "17")()
        assert next(received)["output_ids"].size
        stream.cancel()
        random_id = uuid.uuid4().hex
        received = responses(caller.open("tensorrt_llm", endless("tensorrt_llm"), random_id))
        next(received)
        stop_by(caller, random_id)()
        with pytest.raises(ServerRefusal, match="the request was stopped"):
            list(received)


def test_stop_request_without_an_id_stops_nobody(served: Deployment, grpc_caller: GrpcCaller) -> None:
    stream = grpc_caller.open("tensorrt_llm", endless("tensorrt_llm"))
    received = responses(stream)
    next(received)
    with pytest.raises(ServerRefusal, match="stop is set but the request has no id"):
        stop_by(grpc_caller, "")()
    assert next(received)["output_ids"].size
    stream.cancel()
