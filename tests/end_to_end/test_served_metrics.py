"""`return_perf_metrics` per request, and the counters and gauges on Triton's /metrics, agree with each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from engine.native.library import instructions
from tests.end_to_end.calls import GrpcCaller, Tensors, responses, text_inputs, whole_tokens
from tests.end_to_end.deployment import MAX_BATCH_SIZE, MAX_SEQUENCE_LENGTH, Deployment, wait_until
from tests.end_to_end.reference import Reference

pytestmark = pytest.mark.triton
LONG = 30_000  # nobody waits for its end

PROMPT = "one two three four"
BLOCK_SIZE = 32
DRAFT_LENGTH = 7
TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
COUNTS = (
    *("kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks", "total_draft_tokens"),
    *("total_accepted_draft_tokens", "acceptance_rate"),
)
TOTALS = ("trtllm_spec_decode_num_draft_tokens_total", "trtllm_spec_decode_num_accepted_tokens_total")
BY_POSITION = ("trtllm_spec_decode_drafted_tokens_total", "trtllm_spec_decode_accepted_tokens_total")

both_models = pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])


def figures(answer: Tensors) -> dict[str, Any]:
    return {name: values.item() for name, values in answer.items() if values.size == 1}


@both_models
@pytest.mark.parametrize("stream", [False, True])
def test_figures_of_a_request(
    grpc_caller: GrpcCaller, reference: Reference, model: str, stream: bool
) -> None:
    inputs = text_inputs(PROMPT, max_tokens=150, return_perf_metrics=True, stream=stream)
    *earlier, last = grpc_caller.infer(model, inputs)
    final = figures(last)
    assert final["num_input_tokens"] == len(reference.codec.encode(PROMPT))
    assert final["num_output_tokens"] == 150
    blocks = math.ceil((final["num_input_tokens"] + 150) / BLOCK_SIZE)
    assert final["kv_cache_alloc_new_blocks"] == final["kv_cache_alloc_total_blocks"] == blocks
    assert final["kv_cache_reused_blocks"] == 0
    times = [final[name] for name in TIMES]
    assert 0 < times[0] and times == sorted(times)
    assert 0 < final["total_accepted_draft_tokens"] <= final["total_draft_tokens"]
    rate = final["total_accepted_draft_tokens"] / final["total_draft_tokens"]
    assert final["acceptance_rate"] == pytest.approx(rate, rel=1e-6)
    # Each chunk is a step, and a step emits what it accepts and one token more.
    assert len(earlier) == (149 - final["total_accepted_draft_tokens"] if stream else 0)
    for answer in earlier:
        assert not any(figures(answer)[name] for name in (*TIMES, *COUNTS))


@both_models
def test_figures_only_if_asked_for(grpc_caller: GrpcCaller, model: str) -> None:
    (answer,) = grpc_caller.infer(model, text_inputs(PROMPT, max_tokens=100))
    assert not any(figures(answer)[name] for name in (*TIMES, *COUNTS))
    assert figures(answer)["num_output_tokens"] == 100


@pytest.mark.parametrize("cap", [None, 2, 0])
def test_counters_agree_with_the_requests(
    grpc_caller: GrpcCaller, served: Deployment, cap: int | None
) -> None:
    before = served.metrics()
    drafted = accepted = 0
    for prompt in (PROMPT, "x = [1.5", "the draft proposes"):
        options = {} if cap is None else {"num_draft_tokens": cap}
        inputs = text_inputs(prompt, max_tokens=120, return_perf_metrics=True, **options)
        final = figures(grpc_caller.infer("ensemble", inputs)[-1])
        drafted += final["total_draft_tokens"]
        accepted += final["total_accepted_draft_tokens"]
    expected = [before[name] + total for name, total in zip(TOTALS, (drafted, accepted), strict=True)]
    # Published after the step that answered, series by series: the totals first, positions right behind.
    wait_until(lambda: [served.metrics()[name] for name in TOTALS] == expected, f"{TOTALS} are {expected}")

    def by_positions() -> list[list[float]]:
        after = served.metrics()
        series = [[f"{name}/{position}" for position in range(1, DRAFT_LENGTH + 1)] for name in BY_POSITION]
        return [[after[name] - before[name] for name in names] for names in series]

    wait_until(
        lambda: [sum(counts) for counts in by_positions()] == [drafted, accepted], "positions are there"
    )
    assert [served.metrics()[name] for name in TOTALS] == expected
    by_position = by_positions()
    for counts in by_position:
        assert counts == sorted(counts, reverse=True)
    assert all(a <= d for d, a in zip(*by_position, strict=True))
    allowed = DRAFT_LENGTH if cap is None else cap
    assert not any(by_position[0][allowed:])
    assert (drafted > 0) == (allowed > 0)


def test_gauges_follow_the_load(grpc_caller: GrpcCaller, served: Deployment) -> None:
    requests, blocks = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
    kernel = {"native", str(instructions())} if instructions() else {"openvino", "any"}
    (attention,) = (name for name in served.metrics() if name.startswith("drafthouse_attention_info/"))
    assert kernel < set(attention.split("/"))
    assert served.metrics()[f"{requests}/max"] == MAX_BATCH_SIZE
    assert served.metrics()[f"{blocks}/tokens_per"] == BLOCK_SIZE
    assert served.metrics()[f"{blocks}/max"] == MAX_BATCH_SIZE * MAX_SEQUENCE_LENGTH / BLOCK_SIZE
    inputs = text_inputs(PROMPT, "x = [1.5", max_tokens=LONG, stream=True)
    stream = grpc_caller.open("ensemble", inputs)
    received = responses(stream)
    next(received)
    during = dict[str, float]()

    def both_decode() -> bool:
        during.update(served.metrics())
        return during[f"{requests}/scheduled"] == 2 and during["trtllm_spec_decode_acceptance_length"] > 1

    wait_until(both_decode, "both rows decode, and something was accepted")
    assert (during[f"{requests}/active"], during[f"{requests}/scheduled"]) == (2, 2)
    assert (during[f"{requests}/waiting"], during[f"{requests}/context"]) == (0, 0)
    assert during[f"{blocks}/used"] == sum(
        math.ceil((length + LONG) / BLOCK_SIZE) for length in prompt_lengths(grpc_caller)
    )
    assert during[f"{blocks}/used"] + during[f"{blocks}/free"] == during[f"{blocks}/max"]
    assert during["trtllm_avg_decoded_tokens_per_iter"] > 1
    assert 0 < during["trtllm_spec_decode_draft_overhead"] < 1
    stream.cancel()
    wait_until(served.is_idle, "the cancelled streams hold nothing")


def prompt_lengths(caller: GrpcCaller) -> list[int]:
    answers = caller.infer("ensemble", text_inputs(PROMPT, "x = [1.5", max_tokens=1))
    return [figures(answer)["num_input_tokens"] for answer in answers]


def test_log_probs_and_figures_do_not_change_the_tokens(grpc_caller: GrpcCaller) -> None:
    plain = grpc_caller.infer("ensemble", text_inputs(PROMPT, max_tokens=100))
    full = grpc_caller.infer(
        "ensemble", text_inputs(PROMPT, max_tokens=100, return_log_probs=True, return_perf_metrics=True)
    )
    assert whole_tokens(plain) == whole_tokens(full)
    assert np.ravel(full[0]["output_log_probs"]).size == 100
