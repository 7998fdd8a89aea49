"""One reading of temperature, top_k and top_p, and what each decoding mode of NVIDIA's backend can do of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.errors import RequestError
from engine.request import SamplingParams
from engine.serving.contract import read_sampling
from engine.serving.decoding_modes import decoding_mode
from engine.serving.distribution import for_the_backend
from engine.serving.engine_limits import EngineLimits
from engine.serving.llmapi_request import read_request


def sampled(**said: float) -> SamplingParams:
    """What is said, as `tensorrt_llm` gets it."""
    names = {"temperature": "temperature", "top_k": "runtime_top_k", "top_p": "runtime_top_p"}
    kinds = {"top_k": np.int32}
    return read_sampling(
        {names[name]: np.array([[value]], kinds.get(name, np.float32)) for name, value in said.items()}
    )


CASES: list[tuple[dict[str, float], tuple[float, int, float] | None]] = [
    ({}, None),
    ({"temperature": 0.0, "top_k": 50}, None),
    ({"temperature": 0.75, "top_k": 1}, None),
    ({"top_k": 1}, None),
    ({"top_k": 0, "top_p": 0.0}, None),
    ({"temperature": 0.75}, (0.75, 0, 1.0)),
    ({"temperature": 0.75, "top_k": 0, "top_p": 0.0}, (0.75, 0, 1.0)),
    ({"temperature": 0.75, "top_p": 0.5}, (0.75, 0, 0.5)),
    ({"top_k": 40}, (1.0, 40, 1.0)),
    ({"top_p": 0.5}, (1.0, 0, 0.5)),
    ({"temperature": 1.0, "top_k": 5, "top_p": 0.5}, (1.0, 5, 0.5)),
]


@pytest.mark.parametrize(("said", "expected"), CASES)
def test_every_engine_draws_from_the_same(
    said: dict[str, float], expected: tuple[float, int, float] | None
) -> None:
    read = sampled(**said)
    assert read.greedy == (expected is None)
    inputs = for_the_backend(read, {"temperature": np.array([[9.0]]), "end_id": np.array([[2]])})
    assert np.ravel(inputs["end_id"]).tolist() == [2]
    tensors = {f"sampling_param_{name}": np.array([value]) for name, value in said.items()}
    llm_api = read_request({"text_input": np.array([b"x"], object), **tensors}).sampling
    if expected is None:
        assert np.ravel(inputs["runtime_top_k"]).tolist() == [1]
        assert not {"temperature", "runtime_top_p", "seed"} & set(inputs)
        assert not {"temperature", "top_k", "top_p"} & set(llm_api)
        return
    assert (read.temperature, read.top_k, read.top_p) == expected
    told = [np.ravel(inputs[name])[0] for name in ("temperature", "runtime_top_k", "runtime_top_p")]
    assert tuple(told) == expected
    assert (llm_api["temperature"], llm_api.get("top_k", 0), llm_api["top_p"]) == expected


def test_requests_without_a_seed_do_not_all_draw_the_same() -> None:
    drawn = [for_the_backend(sampled(temperature=0.5), {})["seed"].item() for _ in range(3)]
    assert len(set(drawn)) == 3
    given = {"seed": np.array([[7]], np.uint64)}
    assert for_the_backend(sampled(temperature=0.5), given)["seed"].item() == 7


@pytest.mark.parametrize(
    "said", [{"temperature": -0.5}, {"top_k": -1}, {"top_p": 1.5}, {"temperature": float("nan")}]
)
def test_values_out_of_range_are_refused(said: dict[str, float]) -> None:
    with pytest.raises(RequestError, match=next(iter(said))):
        sampled(**said)


GREEDY: dict[str, Any] = {}
HOT: dict[str, Any] = {"temperature": 0.7}


@pytest.mark.parametrize(
    ("mode", "samples", "takes", "refuses"),
    [
        ("eagle", False, [GREEDY, {"top_k": 1}, {"temperature": 0.0}], [HOT, {"top_k": 40}, {"top_p": 0.9}]),
        ("lookahead", False, [GREEDY], [HOT, {"temperature": 1.0, "top_k": 40}]),
        ("redrafter", False, [GREEDY], [HOT]),
        ("redrafter", True, [HOT], [GREEDY, {**HOT, "top_k": 5}, {**HOT, "top_p": 0.5}]),
        (
            *("medusa", False, [GREEDY, {"top_k": 40}, {"temperature": 1.0, "top_k": 40, "top_p": 1.0}]),
            [HOT, {**HOT, "top_k": 40}, {"temperature": 1.0}, {"top_k": 40, "top_p": 0.5}],
        ),
    ],
)
def test_a_mode_is_asked_for_nothing_that_it_passes_over(
    mode: str, samples: bool, takes: list[dict[str, float]], refuses: list[dict[str, float]]
) -> None:
    known = decoding_mode(mode, redrafter_samples=samples)
    assert known is not None
    for said in takes:
        known.check(sampled(**said), {})
    for said in refuses:
        with pytest.raises(RequestError, match=f"decoding_mode {mode} cannot draw.*; send "):
            known.check(sampled(**said), {})


@pytest.mark.parametrize("mode", ["eagle", "lookahead", "medusa", "redrafter"])
def test_modes_that_draft_have_no_penalties(mode: str) -> None:
    known = decoding_mode(mode, redrafter_samples=False)
    assert known is not None
    for name, value in (("repetition_penalty", 1.3), ("presence_penalty", 0.5), ("bad_words_list", 5)):
        with pytest.raises(RequestError, match=name):
            known.check(SamplingParams(), {name: np.array([[value]])})
    known.check(
        SamplingParams(), {"repetition_penalty": np.array([[1.0]]), "bad_words_list": np.array([[-1]])}
    )


def test_a_mode_that_there_is_not() -> None:
    assert decoding_mode("", redrafter_samples=False) is None
    with pytest.raises(ValueError, match="must be one of medusa, lookahead, eagle, redrafter"):
        decoding_mode("top_k", redrafter_samples=False)


def test_an_engine_says_what_it_was_built_for(tmp_path: Path) -> None:
    content = {
        "pretrained_config": {"redrafter_greedy_search": False},
        "build_config": {"max_seq_len": 100, "max_draft_len": 7},
    }
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    limits = EngineLimits.read(tmp_path)
    assert (limits.max_sequence_length, limits.longest, limits.redrafter_samples) == (100, 93, True)
    (tmp_path / "config.json").write_text('{"pretrained_config": {}}', encoding="utf-8")
    assert EngineLimits.read(tmp_path).longest == 0
