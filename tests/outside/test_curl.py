"""Plain curl against Triton's generate endpoints."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from planner.bench.peers.processes import run
from tests.end_to_end.calls import GrpcCaller, text_inputs, whole_text, whole_tokens
from tests.end_to_end.deployment import Deployment

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
PROMPT = "one two three four five"
MAX_TOKENS = 24


def curl(deployment: Deployment, endpoint: str, **fields: Any) -> str:
    """What curl prints: the answer's body and, in a line of its own, its status."""
    address = f"http://{deployment.http}/v2/models/ensemble/{endpoint}"
    options = ("--silent", "--show-error", "--no-buffer", "--max-time", "30", "--write-out", "\n%{http_code}")
    return run(["curl", *options, "--data", json.dumps(fields), address], seconds=40)


def grpc_answer(deployment: Deployment) -> tuple[str, list[int]]:
    """Text and tokens that gRPC gives, to be held against HTTP's."""
    with GrpcCaller(deployment.grpc) as caller:
        answers = caller.infer("ensemble", text_inputs(PROMPT, max_tokens=MAX_TOKENS))
    return whole_text(answers), whole_tokens(answers)


def test_generate_answers_with_one_json_document(tiny: Deployment) -> None:
    body, status = curl(tiny, "generate", text_input=PROMPT, max_tokens=MAX_TOKENS).rsplit("\n", 1)
    answer = json.loads(body)
    assert status == "200"
    assert (answer["text_output"], answer["output_ids"]) == grpc_answer(tiny)
    assert answer["num_output_tokens"] == len(answer["output_ids"])


def test_generate_stream_sends_the_same_text_in_events(tiny: Deployment) -> None:
    printed = curl(tiny, "generate_stream", text_input=PROMPT, max_tokens=MAX_TOKENS, stream=True)
    *events, status = [line for line in printed.splitlines() if line]
    assert status == "200"
    assert all(event.startswith("data: {") for event in events)
    answers = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len(answers) > 1
    assert "".join(answer["text_output"] for answer in answers) == grpc_answer(tiny)[0]


def test_a_bad_request_is_answered_with_status_400_and_the_reason(tiny: Deployment) -> None:
    body, status = curl(tiny, "generate", text_input=PROMPT, max_tokens=0).rsplit("\n", 1)
    assert status == "400"
    assert "max_tokens is 0; it must be 1 or more" in json.loads(body)["error"]


def test_acceptance_can_be_read(tiny: Deployment) -> None:
    """As the README has it: steps are tokens less those that were accepted."""
    body, _ = curl(
        tiny, "generate", text_input=PROMPT, max_tokens=MAX_TOKENS, return_perf_metrics=True
    ).rsplit("\n", 1)
    answer = json.loads(body)
    accepted, drafted = answer["total_accepted_draft_tokens"], answer["total_draft_tokens"]
    assert 0 < accepted <= drafted
    assert answer["acceptance_rate"] == pytest.approx(accepted / drafted)
    assert answer["num_output_tokens"] / (answer["num_output_tokens"] - accepted) > 1
    *_, last, status = curl(
        tiny,
        "generate_stream",
        text_input=PROMPT,
        max_tokens=MAX_TOKENS,
        stream=True,
        return_perf_metrics=True,
    ).split()
    assert status == "200" and json.loads(last)["total_accepted_draft_tokens"] == accepted


def test_a_misspelt_field_is_refused_with_the_right_one(tiny: Deployment) -> None:
    body, status = curl(tiny, "generate", text_input=PROMPT, max_tokens=MAX_TOKENS, temprature=0.5).rsplit(
        "\n", 1
    )
    assert status == "400"
    assert "unknown parameter 'temprature'; did you mean temperature?" in json.loads(body)["error"]
