"""Requests are checked when they are made, and the message says what would be right."""

from typing import Any

import pytest

from engine.errors import QueueFullError, RequestError
from engine.request import GenerationRequest, SamplingParams


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
    ],
)
def test_sampling_parameters_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (3, -1)}, "token -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"min_tokens": 9}, r"min_tokens is 9; it must lie in 0..max_tokens \(8\)"),
        ({"stop_sequences": ((1,), ())}, "a stop sequence is empty"),
        ({"draft_length": -1}, "draft_length is -1"),
    ],
)
def test_requests_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerationRequest(**{"prompt": (1, 2), "max_tokens": 8, **values})


def test_what_counts_as_greedy() -> None:
    assert SamplingParams().greedy
    assert SamplingParams(temperature=0.9, top_k=1).greedy
    assert not SamplingParams(temperature=0.9).greedy


def test_a_full_queue_is_an_error_of_the_request() -> None:
    assert issubclass(QueueFullError, RequestError)
    assert issubclass(RequestError, ValueError)
