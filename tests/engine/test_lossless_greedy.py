"""Greedy outputs are equal, or differ at a near-tie that rounding explains, or are a bug."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.lossless.greedy import GreedyReport, GreedyRun, compare_greedy, first_divergence

END = 9
PROMPT = [1, 2, 3]


class Scores:
    """Logits for any prefix: tokens 4 and 5 lead, ``gap`` apart; step shape s adds s * noise to token 5."""

    def __init__(self, gap: float, noise: float) -> None:
        self.gap, self.noise = gap, noise
        self.prefixes: list[list[int]] = []

    def __call__(self, prefix: Sequence[int], step_shape: int) -> NDArray[np.float32]:
        self.prefixes.append(list(prefix))
        logits = np.zeros(10, np.float32)
        logits[4], logits[5], logits[END] = 8, 8 - self.gap + step_shape * self.noise, 3
        return logits


def compare(
    plain: list[int], speculative: list[int], scores: Scores, end_ids: frozenset[int]
) -> GreedyReport:
    run = GreedyRun("prompt 7", PROMPT, plain, speculative)
    return compare_greedy([run], scores, step_shapes=[0, 1], end_ids=end_ids)


def test_equal_outputs_are_not_scored() -> None:
    scores = Scores(0, 0)
    runs = [GreedyRun(str(i), PROMPT, [4, 5, 6], [4, 5, 6]) for i in range(3)]
    report = compare_greedy(runs, scores, [0, 1], frozenset())
    assert (report.prompts, report.tokens, report.equal, report.lossless) == (3, 9, 3, True)
    assert report.table() == "3 prompts, 9 tokens compared: 3 prompts equal, 0 near-ties, 0 bugs"
    assert scores.prefixes == []


def test_a_gap_below_the_noise_is_a_near_tie() -> None:
    scores = Scores(gap=0.25, noise=0.5)
    report = compare([6, 4, 1], [6, 5, 2], scores, frozenset())
    divergence = report.divergences[0]
    assert (divergence.position, divergence.plain_token, divergence.speculative_token) == (1, 4, 5)
    assert (divergence.gap, divergence.noise) == pytest.approx((0.25, 0.5))
    assert (report.near_ties, report.bugs, report.lossless, report.tokens) == (1, 0, True, 2)
    assert scores.prefixes == [[*PROMPT, 6]] * 2
    heading, line, counts = report.table().splitlines()
    assert heading.split() == ["prompt", "position", "plain", "speculative", "gap", "noise", "verdict"]
    assert line.split() == ["prompt", "7", "1", "4", "5", "0.25", "0.5", "near-tie"]
    assert counts.endswith("0 prompts equal, 1 near-ties, 0 bugs")


@pytest.mark.parametrize(("gap", "noise"), [(0.25, 0.125), (0.25, 0.25), (0.0, 0.0)])
def test_a_gap_that_noise_does_not_explain_is_a_bug(gap: float, noise: float) -> None:
    report = compare([4], [5], Scores(gap, noise), frozenset())
    assert (report.bugs, report.lossless) == (1, False)
    assert "BUG" in report.table()


def test_a_token_far_below_the_top_is_a_bug_however_close_the_top_two_are() -> None:
    report = compare([4], [6], Scores(gap=0.01, noise=0.5), frozenset())
    assert report.divergences[0].gap == pytest.approx(8)
    assert report.bugs == 1


def test_an_output_that_ends_early_is_judged_by_its_end_token() -> None:
    report = compare([6, 4, 4], [6, 4], Scores(gap=0.01, noise=0.5), frozenset({END}))
    divergence = report.divergences[0]
    assert (divergence.position, divergence.plain_token, divergence.speculative_token) == (2, 4, None)
    assert divergence.gap == pytest.approx(5)
    assert report.bugs == 1
    without_end = compare([6, 4, 4], [6, 4], Scores(gap=0.01, noise=0.5), frozenset())
    assert without_end.divergences[0].gap == np.inf
    assert " end " in without_end.table()


@given(st.lists(st.integers(0, 2), max_size=8), st.lists(st.integers(0, 2), max_size=8))
def test_first_divergence_is_where_the_common_prefix_ends(left: list[int], right: list[int]) -> None:
    position = first_divergence(left, right)
    if position is None:
        assert left == right
    else:
        assert left[:position] == right[:position]
        assert left[position : position + 1] != right[position : position + 1]


def test_noise_takes_two_shapes() -> None:
    with pytest.raises(ValueError, match="at least two"):
        compare_greedy([], Scores(0, 0), [0], frozenset())
