"""Confidence interval of a speed-up, by a paired bootstrap over rounds and requests.

Both arms send the same prompts, so a request of one arm has its partner in the other, and what is drawn with
replacement are pairs: first rounds, then pairs within each drawn round. By Little's law the throughput of a
closed loop with c users is ``c * sum(tokens) / sum(latency)``, so the ratio of two arms needs nothing but the
sums over their requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

Pairs = NDArray[np.float64]
"""``[pairs, 4]``: tokens and latency of the arm, tokens and latency of the baseline."""


def ratio(pairs: Pairs) -> float:
    """Throughput of the arm / that of the baseline, from their requests."""
    return float(_ratios(pairs.sum(axis=0)[np.newaxis])[0])


def relative_interval(rounds: Sequence[Pairs], seed: int, level: float = 0.95) -> tuple[float, float]:
    """Bounds of the ratio, relative to the ratio of the whole sample: ``(0.9, 1.1)`` means 10 % either way.

    Args:
        rounds: the pairs of each round; at least one round, each with at least one pair.
        seed: seeds the resampling.
        level: coverage of the interval.
    """
    random = np.random.default_rng(seed)
    chosen = random.integers(len(rounds), size=(RESAMPLES, len(rounds)))
    sums = np.zeros((RESAMPLES, 4))
    for column in chosen.T:
        for number, pairs in enumerate(rounds):
            rows = np.flatnonzero(column == number)
            draws = random.integers(len(pairs), size=(len(rows), len(pairs)))
            sums[rows] += pairs[draws].sum(axis=1)
    spread = _ratios(sums) / ratio(np.concatenate(list(rounds)))
    low, high = np.percentile(spread, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[n]`` ratios of ``[n, 4]`` sums."""
    return (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3])
