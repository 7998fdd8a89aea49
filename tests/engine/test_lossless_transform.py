"""The transform test accepts tokens of the target and rejects tokens of anything else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.lossless.transform import TransformReport, TransformTest, UniformityTest
from engine.request import SamplingParams
from engine.sampling import Distribution, RequestRandom, target_distribution

ALPHA = 1e-3
Choose = Callable[[Distribution], int]


def report(choose: Choose, positions: int = 2000, vocabulary: int = 300) -> TransformReport:
    rng = np.random.default_rng(8)
    test = TransformTest(control_temperature=0.7, seed=4)
    for _ in range(positions):
        logits = rng.normal(scale=2.5, size=vocabulary).astype(np.float32)
        probs = target_distribution(logits, SamplingParams(temperature=1.0))
        test.observe(probs, choose(probs))
    return test.report(ALPHA)


def test_tokens_of_the_target_pass_and_the_control_is_rejected() -> None:
    result = report(RequestRandom(1).choose)
    assert not result.emitted.rejected
    assert result.control.rejected
    assert result.passed
    assert result.emitted.positions == 2000


@pytest.mark.parametrize("exponent", [0.8, 1.25])
def test_another_temperature_is_rejected(exponent: float) -> None:
    random = RequestRandom(2)
    assert report(lambda probs: random.choose(probs**exponent)).emitted.rejected


def test_bias_that_has_nothing_to_do_with_rank_is_rejected() -> None:
    random = RequestRandom(3)

    def favour_low_ids(probs: Distribution) -> int:
        return random.choose(probs * np.linspace(1.3, 0.7, len(probs)))

    result = report(favour_low_ids)
    assert result.emitted.id_p_value < ALPHA / 2 < result.emitted.rank_p_value


def test_a_few_wrong_tokens_in_a_hundred_are_rejected() -> None:
    random = RequestRandom(4)

    def sometimes_the_least_likely(probs: Distribution) -> int:
        return int(probs.argmin()) if random.accept(0.05) else random.choose(probs)

    assert report(sometimes_the_least_likely).emitted.rejected


def test_an_impossible_token_is_rejected() -> None:
    random = RequestRandom(5)
    test = UniformityTest(seed=0)
    probs = np.array([0.5, 0.5, 0.0])
    for _ in range(200):
        test.observe(probs, random.choose(probs))
    assert not test.result(ALPHA).rejected
    test.observe(probs, 2)
    result = test.result(ALPHA)
    assert (result.impossible, result.positions, result.rejected) == (1, 201, True)


def test_ties_and_certain_tokens_are_uniform_too() -> None:
    random = RequestRandom(6)
    test = UniformityTest(seed=1)
    for position in range(1000):
        probs = np.eye(4)[position % 4] if position % 2 else np.array([0.3, 0.2, 0.3, 0.2])
        test.observe(probs, random.choose(probs))
    assert not test.result(ALPHA).rejected


def test_a_control_without_contrast_does_not_pass() -> None:
    test = TransformTest(control_temperature=0.7, seed=0)
    for _ in range(500):
        test.observe(np.array([0.0, 1.0]), 1)
    result = test.report(ALPHA)
    assert not result.emitted.rejected
    assert not result.passed


def test_too_few_tokens_and_useless_controls_are_refused() -> None:
    with pytest.raises(ValueError, match="99 usable tokens"):
        report(RequestRandom(1).choose, positions=99)
    for temperature in (1.0, 0.0, -2.0):
        with pytest.raises(ValueError, match="control temperature"):
            TransformTest(temperature, seed=0)
