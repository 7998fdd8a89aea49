"""Which request parameters are refused, and what is then proposed."""

from __future__ import annotations

import json

import pytest

from engine.errors import RequestError
from engine.serving.request_names import refuse_unknown

INPUTS = (
    *("text_input", "max_tokens", "stop_words", "temperature", "top_p", "min_tokens", "return_log_probs"),
    *("num_draft_tokens", "return_perf_metrics", "repetition_penalty", "beam_width"),
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("MAX_TOKENS", "max_tokens"),
        ("temprature", "temperature"),
        ("topP", "top_p"),
        ("stop", "stop_words"),
        ("stopwords", "stop_words"),
        ("num_drafts_tokens", "num_draft_tokens"),
        ("return_perf_metric", "return_perf_metrics"),
        ("logprobs", "return_log_probs"),
        ("num_beams", "beam_width"),
    ],
)
def test_a_misspelt_input_is_refused_with_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"unknown parameter '{name}'; did you mean {meant}\\?"):
        refuse_unknown(json.dumps({name: 1}), INPUTS)


@pytest.mark.parametrize("name", ["min_p", "guidance", "best_of", "bestOf", "Guidance", "модель", ""])
def test_what_resembles_nothing_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(RequestError, match=f"unknown parameter '{name}'; there are: beam_width, max_tokens"):
        refuse_unknown(json.dumps({name: 1}), INPUTS)


def test_an_input_sent_as_a_parameter_is_refused() -> None:
    with pytest.raises(RequestError, match="max_tokens is an input"):
        refuse_unknown('{"max_tokens": 3}', INPUTS)


def test_what_front_ends_and_proxies_add_is_let_through() -> None:
    harmless = {"id": "7", "priority": 1, "timeout": 9, "triton_enable_empty_final_response": True}
    headers = {"X-Request-Id": "7", "traceparent": "00-1", "x-forwarded-for": "::1", "User-Agent": "curl"}
    refuse_unknown(json.dumps({**harmless, **headers, "user": "me"}), INPUTS)
    refuse_unknown(
        json.dumps({"Host": "a", "Accept": "b", "X-Stop-Words": "c", "Via": "d", "B3": "e"}), INPUTS
    )
    refuse_unknown("", INPUTS)
