"""The two significance tests that the lossless checks rest on.

Both test a null hypothesis that is exactly known (the target's distribution), so a correct engine is
rejected with a probability of `alpha` and no more, whatever the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

# Cochran's rule: the chi-square approximation holds for cells with at least this expectation.
_MIN_EXPECTED = 5.0


@dataclass(frozen=True, slots=True)
class GoodnessOfFit:
    """Counts against a known distribution.

    Attributes:
        samples: number of observations.
        cells: outcomes of positive probability.
        impossible: observations whose probability is 0; a single one rejects.
        chi_square: Pearson's statistic over cells with an expectation of 5 or more, the others pooled.
        degrees: its degrees of freedom.
        p_value: probability of such a statistic or a greater one under the distribution.
        variation: total-variation distance between the observed frequencies and the distribution.
        variation_bound: what a correct sampler stays below with probability 1 - alpha.
        rejected: whether the counts refute the distribution at level alpha, by any of the three.
    """

    samples: int
    cells: int
    impossible: int
    chi_square: float
    degrees: int
    p_value: float
    variation: float
    variation_bound: float
    rejected: bool


def goodness_of_fit(counts: NDArray[np.int64], probs: NDArray[np.float64], alpha: float) -> GoodnessOfFit:
    """Test whether ``counts`` are draws from ``probs``.

    Chi-square and total variation each get half of ``alpha``. Bound of the variation: its mean is at most
    0.5 * sum sqrt(p (1 - p) / n) (Jensen), and one observation moves it by at most 1 / n, so it exceeds
    its mean by sqrt(ln(1 / a) / 2n) with probability a at most (McDiarmid's inequality).

    Args:
        counts: observations of each outcome, ``[cells]``.
        probs: probability of each outcome, ``[cells]``, summing to 1.
        alpha: probability of rejecting a correct sampler.
    """
    samples = int(counts.sum())
    possible = probs > 0
    impossible = int(counts[~possible].sum())
    chi_square, degrees = _chi_square(counts[possible], probs[possible] * samples)
    p_value = float(chdtrc(degrees, chi_square)) if degrees else 1.0
    variation = 0.5 * float(np.abs(counts / samples - probs).sum())
    mean = 0.5 * float(np.sqrt(probs * (1 - probs) / samples).sum())
    bound = mean + math.sqrt(math.log(2 / alpha) / (2 * samples))
    return GoodnessOfFit(
        samples=samples,
        cells=int(possible.sum()),
        impossible=impossible,
        chi_square=chi_square,
        degrees=degrees,
        p_value=p_value,
        variation=variation,
        variation_bound=bound,
        rejected=impossible > 0 or p_value < alpha / 2 or variation > bound,
    )


def kolmogorov_smirnov(uniforms: NDArray[np.float64]) -> tuple[float, float]:
    """Test whether numbers are Uniform(0, 1).

    Args:
        uniforms: ``[n]``, n of a hundred or more (the p-value is that of Kolmogorov's limit).

    Returns:
        The greatest distance between the empirical distribution function and the diagonal, and its p-value.
    """
    n = len(uniforms)
    ordered = np.sort(uniforms)
    above = np.arange(1, n + 1) / n - ordered
    below = ordered - np.arange(n) / n
    distance = float(max(above.max(), below.max()))
    return distance, float(kolmogorov(math.sqrt(n) * distance))


def _chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> tuple[float, int]:
    """Pearson's statistic and its degrees of freedom, rare cells pooled into one."""
    rare = expected < _MIN_EXPECTED
    pooled_counts, pooled_expected = counts[~rare], expected[~rare]
    if expected[rare].sum() >= _MIN_EXPECTED:
        pooled_counts = np.append(pooled_counts, counts[rare].sum())
        pooled_expected = np.append(pooled_expected, expected[rare].sum())
    statistic = float(((pooled_counts - pooled_expected) ** 2 / pooled_expected).sum())
    return statistic, max(len(pooled_counts) - 1, 0)
