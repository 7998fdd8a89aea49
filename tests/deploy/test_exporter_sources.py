"""Acceptance as `trtllm-serve` tells it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.exporter.fetch import Unanswered
from deploy.exporter.sources import Counts, counts_itself, read_iteration_stats, read_trtllm_prometheus
from tests.deploy.answering import Answering

# trtllm-serve 1.3: metrics/collector.py; labels as its OpenAI server sets them.
LABELS = 'model_name="llama",engine_type="trtllm"'
PROMETHEUS = f"""\
# TYPE trtllm_spec_decode_num_draft_tokens_total counter
trtllm_spec_decode_num_draft_tokens_total{{{LABELS}}} 300.0
trtllm_spec_decode_num_accepted_tokens_total{{{LABELS}}} 150.0
trtllm_spec_decode_acceptance_length{{{LABELS}}} 2.7
trtllm_spec_decode_drafted_tokens_total{{{LABELS},token_position="1"}} 100.0
trtllm_spec_decode_drafted_tokens_total{{{LABELS},token_position="2"}} 100.0
trtllm_spec_decode_drafted_tokens_total{{{LABELS},token_position="3"}} 100.0
trtllm_spec_decode_accepted_tokens_total{{{LABELS},token_position="1"}} 80.0
trtllm_spec_decode_accepted_tokens_total{{{LABELS},token_position="2"}} 50.0
trtllm_spec_decode_accepted_tokens_total{{{LABELS},token_position="3"}} 20.0
"""


def iteration(drafted: int, accepted: int, requests: int, **more: Any) -> dict[str, Any]:
    """One entry of trtllm-serve's /metrics, as far as it matters."""
    return {
        "iter": 7,
        "iterLatencyMS": 12.5,
        "numActiveRequests": requests,
        "inflightBatchingStats": {"numGenRequests": requests},
        "specDecodingStats": {
            "numDraftTokens": drafted,
            "numAcceptedTokens": accepted,
            "numRequestsWithDraftTokens": requests,
            "acceptanceLength": (accepted + requests) / requests if requests else 0.0,
            "iterLatencyMS": 1.0,
            "draftOverhead": 0.1,
        },
        **more,
    }


def test_prometheus_page_of_1_3(server: Answering) -> None:
    server.pages["/prometheus/metrics"] = PROMETHEUS
    assert read_trtllm_prometheus(server.url) == Counts(
        tokens=250, steps=100, drafted=300, accepted=150,
        drafted_at={1: 100, 2: 100, 3: 100}, accepted_at={1: 80, 2: 50, 3: 20},
    )  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        'request_success_total{model_name="undefined",finished_reason="length"} 3.0\n',  # 1.0 to 1.2
        PROMETHEUS.replace("300.0", "0.0").replace("150.0", "0.0"),  # enable_iter_perf_stats is off
    ],
)
def test_a_prometheus_page_without_counts_tells_nothing(server: Answering, page: str) -> None:
    server.pages["/prometheus/metrics"] = page
    assert read_trtllm_prometheus(server.url) is None


def test_iterations_are_added_up(server: Answering) -> None:
    prefill = {"iter": 1, "specDecodingStats": None}
    idle = iteration(0, 0, 0)
    copy = iteration(30, 12, 10, attentionDpRank=1)  # attention data parallelism repeats rank 0
    server.pages["/metrics"] = [prefill, idle, iteration(30, 12, 10), copy, json.dumps(iteration(27, 10, 9))]
    assert read_iteration_stats(server.url) == Counts(tokens=41, steps=19, drafted=57, accepted=22)


@pytest.mark.parametrize("page", [[], [{"iter": 1}], [iteration(0, 0, 0)]])
def test_iterations_without_speculation_tell_nothing(server: Answering, page: list[Any]) -> None:
    server.pages["/metrics"] = page
    assert read_iteration_stats(server.url) is None


@pytest.mark.parametrize("page", ["# TYPE up gauge\nup 1\n", {"a": 1}, ["no iteration"]])
def test_other_pages_are_no_iterations(server: Answering, page: Any) -> None:
    server.pages["/metrics"] = page
    with pytest.raises(Unanswered, match="/metrics"):
        read_iteration_stats(server.url)


def test_whether_triton_counts_itself(server: Answering) -> None:
    server.pages["/metrics"] = 'nv_trt_llm_request_metrics{request_type="waiting"} 0\n'
    assert not counts_itself(f"{server.url}/metrics")
    server.pages["/metrics"] = PROMETHEUS
    assert counts_itself(f"{server.url}/metrics")
    with pytest.raises(Unanswered, match="404"):
        counts_itself(f"{server.url}/elsewhere")
