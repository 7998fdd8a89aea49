from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from loadtest.arrivals import poisson_arrivals

COUNT = 20_000


def gaps(rate: float, *seeds: int) -> NDArray[np.float64]:
    return np.diff([0.0, *itertools.islice(poisson_arrivals(rate, *seeds), COUNT)])


def test_gaps_are_exponential() -> None:
    found = gaps(4.0, 1)
    error = 5 / np.sqrt(COUNT)
    assert found.mean() == pytest.approx(0.25, rel=error)
    assert found.std() / found.mean() == pytest.approx(1.0, abs=2 * error)
    for share in (0.1, 0.5, 0.9, 0.99):  # quantiles of the exponential distribution
        assert (found <= -np.log(1 - share) / 4.0).mean() == pytest.approx(share, abs=error / 2)


def test_gaps_are_independent() -> None:
    found = gaps(1.0, 2)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(COUNT)


def test_counts_in_a_second_vary_like_their_mean() -> None:
    times = np.fromiter(itertools.islice(poisson_arrivals(10.0, 3), COUNT), dtype=float)
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.2)


def test_seeds_decide() -> None:
    assert (gaps(2.0, 7, 1) == gaps(2.0, 7, 1)).all()
    assert (gaps(2.0, 7, 1) != gaps(2.0, 7, 2)).all()


def test_same_seed_scales_with_the_rate() -> None:
    assert gaps(1.0, 5) == pytest.approx(gaps(2.0, 5) * 2)


def test_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(poisson_arrivals(0.0, 1))
