"""Target distributions agree with a sort of the whole vocabulary; random numbers depend on the seed alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.lossless.statistics import goodness_of_fit
from engine.request import SamplingParams
from engine.sampling import (
    Distribution,
    LogitsError,
    RequestRandom,
    TargetDistributions,
    likeliest_tokens,
    target_distribution,
)


def naive_distribution(logits: NDArray[np.float32], params: SamplingParams) -> Distribution:
    """Temperature, top-k and top-p by the definition: sort everything, keep ties with the last one kept."""
    scaled = logits.astype(np.float64) / params.temperature
    if params.top_k:
        scaled[scaled < np.sort(scaled)[::-1][min(params.top_k, len(scaled)) - 1]] = -np.inf
    probs: Distribution = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    if params.top_p < 1:
        ordered = np.sort(probs)[::-1]
        last = next((i for i in range(len(ordered)) if ordered[: i + 1].sum() >= params.top_p), -1)
        probs[probs < ordered[last]] = 0
    probs /= probs.sum()
    return probs


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 400),
    st.floats(0.1, 3),
    st.integers(0, 60),
    st.sampled_from([0.01, 0.3, 0.7, 0.95, 1.0]),
)
def test_agrees_with_the_definition(
    seed: int, size: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(seed).normal(scale=2, size=size).astype(np.float32)
    params = SamplingParams(temperature, top_k, top_p)
    probs = target_distribution(logits, params)
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs, naive_distribution(logits, params), rtol=1e-12, atol=0)


def test_rows_are_treated_one_by_one() -> None:
    logits = np.random.default_rng(3).normal(size=(4, 90)).astype(np.float32)
    params = SamplingParams(0.7, 10, 0.8)
    both = target_distribution(logits, params)
    assert both.shape == logits.shape
    for row in range(4):
        assert np.array_equal(both[row], target_distribution(logits[row], params))


def test_ties_stay_together() -> None:
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    for params in (SamplingParams(1.0, top_k=2), SamplingParams(1.0, top_p=0.4)):
        assert target_distribution(logits, params).tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_banned_tokens_have_no_probability() -> None:
    logits = np.array([-np.inf, 1, -np.inf, 1], np.float32)
    for params in (SamplingParams(1.0), SamplingParams(1.0, top_k=3), SamplingParams(1.0, top_p=0.99)):
        assert target_distribution(logits, params).tolist() == [0, 0.5, 0, 0.5]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    probs = target_distribution(np.array([1, 1.001, 0.9], np.float32), SamplingParams(1e-310))
    assert probs.tolist() == [0, 1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_logits_name_the_request_and_the_row(bad: float) -> None:
    logits = np.zeros((3, 5), np.float32)
    logits[2, 3] = bad
    rows = TargetDistributions(logits, SamplingParams(1.0), request_id=41)
    assert rows[1].tolist() == pytest.approx([0.2] * 5)
    with pytest.raises(LogitsError, match="request 41, row 2 of the step: 1 of 5 logits"):
        rows[2]


@pytest.mark.parametrize("size", [48, 320, 49152])
@pytest.mark.parametrize("bad", [0, 1, 9, 40, 48])
def test_the_likeliest_tokens_are_never_those_without_a_logit(size: int, bad: int) -> None:
    """What the target says of a rejected token may be anything, and must not end other requests."""
    random = np.random.default_rng([size, bad])
    logits = random.permutation(size).astype(np.float32)
    spoilt = random.permutation(size)[:bad]
    logits[spoilt] = np.nan
    found = likeliest_tokens(logits, 8).tolist()
    valid = [token for token in range(size) if token not in spoilt]
    expected = sorted(valid, key=lambda token: -logits[token])[:8]
    assert len(set(found)) == 8 and found[: len(expected)] == expected


def test_all_tokens_banned_is_an_error() -> None:
    with pytest.raises(LogitsError, match="every token is banned"):
        target_distribution(np.full(4, -np.inf, np.float32), SamplingParams(1.0))


def test_greedy_has_no_distribution() -> None:
    with pytest.raises(ValueError, match="argmax"):
        target_distribution(np.zeros(3, np.float32), SamplingParams(0.0))


def test_choices_follow_the_weights() -> None:
    random = RequestRandom(5)
    weights = np.array([0.0, 3.0, 1.0, 0.0, 0.5])
    counts = np.bincount([random.choose(weights) for _ in range(20_000)], minlength=5)
    assert not goodness_of_fit(counts, weights / weights.sum(), alpha=1e-3).rejected


def test_acceptance_follows_the_probability() -> None:
    random = RequestRandom(6)
    accepted = sum(random.accept(0.3) for _ in range(20_000))
    assert not goodness_of_fit(
        np.array([accepted, 20_000 - accepted]), np.array([0.3, 0.7]), alpha=1e-3
    ).rejected
    assert all(random.accept(1.0) and not random.accept(0.0) for _ in range(1000))


def test_streams_of_a_request_do_not_disturb_each_other() -> None:
    weights = np.full(50, 0.02)
    alone, mixed = RequestRandom(9), RequestRandom(9)
    expected = [alone.choose(weights) for _ in range(20)]
    found = []
    for step in range(20):
        mixed.draft.random(step)
        for _ in range(step % 3):
            mixed.accept(0.5)
        found.append(mixed.choose(weights))
    assert found == expected


def test_choices_go_on_where_earlier_ones_stopped() -> None:
    weights = np.full(3000, 1 / 3000)
    whole = RequestRandom(9)
    expected = [whole.choose(weights) for _ in range(12)]
    for made in range(12):
        later = RequestRandom(9, made)
        assert [later.choose(weights) for _ in range(12 - made)] == expected[made:]
    assert len(set(expected)) > 10


def test_streams_and_seeds_differ() -> None:
    def numbers(random: RequestRandom) -> tuple[float, ...]:
        return tuple(random.draft.random(4))

    assert numbers(RequestRandom(1)) == numbers(RequestRandom(1))
    assert numbers(RequestRandom(1)) != numbers(RequestRandom(2))
    random = RequestRandom(1)
    accepted = [random.accept(0.5) for _ in range(64)]
    assert accepted != [value < 0.5 for value in RequestRandom(1).draft.random(64).tolist()]


def test_a_choice_changes_little_with_the_distribution() -> None:
    """Moving 0.1 % of probability to other tokens changes about that share of the choices."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(200, 0.1))
    moved = 0.999 * probs + 0.001 * rng.dirichlet(np.full(200, 0.1))
    variation = 0.5 * np.abs(probs - moved).sum()
    left, right = RequestRandom(4), RequestRandom(4)
    changed = sum(left.choose(probs) != right.choose(moved) for _ in range(20_000))
    assert changed / 20_000 < 2 * variation + 4 * np.sqrt(2 * variation / 20_000)
