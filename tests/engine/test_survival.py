"""How likely drafts are accepted: from counts, and from what becomes of drafts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engine.control.survival import Fate, History, SurvivalEstimate
from engine.plan import Survival


def counts(match: int, chances: list[float], drafts: int = 1000) -> Survival:
    return Survival(match=match, tried=[drafts] * len(chances), accepted=[round(drafts * p) for p in chances])


def test_it_starts_from_the_counts_of_its_match_length() -> None:
    estimate = SurvivalEstimate([counts(1, [0.3, 0.1]), counts(4, [0.8, 0.6])], 2)
    assert estimate(1, 0.0, None, 2) == pytest.approx([0.3, 0.1], abs=0.02)
    assert estimate(4, 0.0, None, 2) == pytest.approx([0.8, 0.6], abs=0.02)
    assert estimate(4, 0.0, None, 1) == estimate(4, 0.0, None, 2)[:1]
    assert estimate.expected(4, 2) == pytest.approx(1.4, abs=0.03)


def test_without_counts_deeper_nodes_are_less_likely() -> None:
    found = SurvivalEstimate([], 4)(3, 0.0, None, 4)
    assert found == sorted(found, reverse=True) and 0.3 < found[0] < 0.7 and found[3] < 0.15


def test_acceptance_that_has_changed_is_learned() -> None:
    estimate = SurvivalEstimate([counts(1, [0.7, 0.5, 0.3])], 3)
    random = np.random.default_rng(0)
    for _ in range(500):
        accepted = min(3, int(random.geometric(0.8)) - 1)
        estimate.learn(1, 0.0, None, [node < accepted for node in range(3)])
    assert estimate(1, 0.0, None, 3) == pytest.approx([0.2, 0.04, 0.008], abs=0.05)


def test_confidence_counts_once_it_is_seen_to_tell_something() -> None:
    estimate = SurvivalEstimate([counts(1, [0.5])], 1)
    sure, unsure = (math.log(0.95),), (math.log(0.05),)
    assert estimate(1, 0.0, sure, 1) == estimate(1, 0.0, unsure, 1)
    random = np.random.default_rng(0)
    for _ in range(400):
        scores = sure if random.random() < 0.5 else unsure
        estimate.learn(1, 0.0, scores, [bool(random.random() < math.exp(scores[0]))])
    assert estimate(1, 0.0, sure, 1)[0] > 0.85 and estimate(1, 0.0, unsure, 1)[0] < 0.15


def test_confidence_that_is_the_wrong_way_round_is_not_believed() -> None:
    estimate = SurvivalEstimate([counts(1, [0.5])], 1)
    sure, unsure = (math.log(0.9),), (math.log(0.1),)
    random = np.random.default_rng(0)
    for _ in range(400):
        turned = random.random() < 0.5
        estimate.learn(1, 0.0, sure if turned else unsure, [bool(random.random() < (0.1 if turned else 0.9))])
    assert estimate(1, 0.0, sure, 1) == pytest.approx(estimate(1, 0.0, unsure, 1))


def test_few_observations_change_nothing() -> None:
    estimate = SurvivalEstimate([counts(1, [0.5, 0.4])], 2)
    before = estimate(1, 0.0, None, 2)
    for _ in range(49):
        estimate.learn(1, 0.0, None, [False, False])
    assert estimate(1, 0.0, None, 2) == before


def test_a_request_that_fares_better_than_expected_is_trusted_more() -> None:
    estimate, good, bad = SurvivalEstimate([counts(1, [0.5, 0.3])], 2), History(), History()
    for _ in range(4):
        good.add(4, 0.8)
        bad.add(0, 0.8)
    assert good.value > 0 > bad.value and History().value == 0
    assert estimate(1, good.value, None, 1) > estimate(1, 0.0, None, 1) > estimate(1, bad.value, None, 1)


@pytest.mark.parametrize(
    ("emitted", "at", "known"),
    [
        ([[7, 8, 9]], 3, True),
        ([[7], [8], [1]], 2, True),
        ([[7, 8]], 2, False),
        ([[1]], 0, True),
        ([[7, 8], [9, 4]], 3, True),
    ],
)
def test_what_is_emitted_tells_what_became_of_a_chain(emitted: list[list[int]], at: int, known: bool) -> None:
    fate = Fate((7, 8, 9), 1, 0.0, None)
    found = [fate.follow(tokens) for tokens in emitted]
    assert (fate.at, found[-1]) == (at, known) and not any(found[:-1])


@pytest.mark.parametrize("guessed", [False, True])
def test_what_a_match_tells_is_learned_where_it_was_only_guessed(guessed: bool) -> None:
    estimate = SurvivalEstimate([], 1, guessed=guessed)
    random = np.random.default_rng(0)
    for _ in range(400):
        match = int(random.integers(1, 3))
        estimate.learn(match, 0.0, None, [bool(random.random() < (0.1 if match == 1 else 0.8))])
    apart = estimate(2, 0.0, None, 1)[0] - estimate(1, 0.0, None, 1)[0]
    assert (apart > 0.5) == guessed and (apart == 0) != guessed
