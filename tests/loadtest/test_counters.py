from __future__ import annotations

import pytest

from loadtest.counters import MetricsUnavailable, difference, parse_counters, read_counters

PAGE = """
# HELP trtllm_spec_decode_drafted_tokens_total Draft tokens by position
# TYPE trtllm_spec_decode_drafted_tokens_total counter
trtllm_spec_decode_drafted_tokens_total{model="tensorrt_llm",token_position="1",version="1"} 120
trtllm_spec_decode_drafted_tokens_total{model="tensorrt_llm",token_position="2",version="1"} 1.1e+02
trtllm_spec_decode_accepted_tokens_total{model="tensorrt_llm",token_position="1",version="1"} 60
trtllm_spec_decode_accepted_tokens_total{model="other",token_position="1",version="1"} 2
trtllm_spec_decode_num_draft_tokens_total{model="tensorrt_llm",version="1"} 230
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 5
nv_inference_request_success{model="a \\"quoted\\" name, with {braces}",version="1"} 9
"""


def test_page_is_read_by_position() -> None:
    counters = parse_counters(PAGE)
    assert counters.drafted == {1: 120, 2: 110}
    assert counters.accepted == {1: 62}
    assert counters.active_requests == 3


def test_page_without_speculation() -> None:
    counters = parse_counters("nv_inference_count 4\n")
    assert (counters.drafted, counters.accepted, counters.active_requests) == ({}, {}, None)


def test_difference_survives_a_restart() -> None:
    assert difference({1: 10, 2: 10}, {1: 15, 2: 10, 3: 4}) == {1: 5, 2: 0, 3: 4}
    assert difference({1: 100}, {1: 7}) == {1: 7}


def test_nothing_listening() -> None:
    with pytest.raises(MetricsUnavailable, match=r"127\.0\.0\.1:9"):
        read_counters("http://127.0.0.1:9/metrics")
