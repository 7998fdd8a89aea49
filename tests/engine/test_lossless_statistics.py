"""The significance tests keep their level on correct samples and see small deviations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]  # scipy ships no types

from engine.lossless.statistics import goodness_of_fit, kolmogorov_smirnov

PROBS = np.array([0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0])


def test_chi_square_agrees_with_scipy_when_no_cell_is_rare() -> None:
    counts = np.array([520, 240, 110, 70, 60, 0])
    fit = goodness_of_fit(counts, PROBS, alpha=1e-3)
    expected = stats.chisquare(counts[:-1], PROBS[:-1] * 1000)
    assert (fit.chi_square, fit.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert (fit.cells, fit.degrees, fit.impossible, fit.rejected) == (5, 4, 0, False)


def test_rare_cells_are_pooled() -> None:
    probs = np.array([0.9, *[0.01] * 10])
    counts = np.array([90, 10, *[0] * 9])
    fit = goodness_of_fit(counts, probs, alpha=1e-3)
    assert fit.degrees == 1
    assert fit.chi_square == pytest.approx(0)


def test_correct_samples_are_rarely_rejected() -> None:
    rng = np.random.default_rng(0)
    rejected = sum(
        goodness_of_fit(rng.multinomial(5000, PROBS), PROBS, alpha=0.05).rejected for _ in range(400)
    )
    assert rejected <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05)


def test_an_impossible_outcome_is_rejected() -> None:
    counts = np.array([500, 250, 125, 62, 62, 1])
    fit = goodness_of_fit(counts, PROBS, alpha=1e-3)
    assert (fit.impossible, fit.rejected) == (1, True)


def test_a_small_shift_is_rejected() -> None:
    shifted = PROBS + np.array([-0.02, 0.02, 0, 0, 0, 0])
    counts = np.random.default_rng(1).multinomial(20_000, shifted)
    fit = goodness_of_fit(counts, PROBS, alpha=1e-3)
    assert fit.rejected
    assert fit.variation == pytest.approx(0.02, abs=0.01)


def test_kolmogorov_smirnov_agrees_with_scipy() -> None:
    for values in (np.random.default_rng(2).random(2000), np.random.default_rng(2).random(2000) ** 1.2):
        distance, p_value = kolmogorov_smirnov(values)
        expected = stats.kstest(values, "uniform", method="asymp")
        assert distance == pytest.approx(expected.statistic)
        assert p_value == pytest.approx(expected.pvalue)
