"""What a step costs, from few measured points: monotone, in steps where graphs have fixed sizes, interpolated between.

Points are milliseconds by context, batch and size (tokens or nodes of each request), one figure a round. Tables hold
the medians of the rounds, and once more of the rounds resampled: all subjects of a round were measured one after the
other, so a round is drawn as a whole, and what the machine did in it stays in ratios.

More context, more requests or more rows in all never make a step cheaper; of drafts, which are made level by level, it
is more nodes of each request, since a long draft for one may well take longer than a short one for many. Where the
medians say otherwise, each point takes the mean of the greatest figure below it and of the least above it, which
changes nothing where the order holds.

A question outside what was measured has no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engine.buckets import bucket_of
from engine.control.errors import ProfileError

Floats = NDArray[np.float64]


class CostTable:
    """Milliseconds by context, batch and size, in several samples at once.

    Args:
        points: `context`, `batch`, `tokens` and `ms` of each, every combination once and `ms` of equal length.
        samples: int ``[samples, rounds]``, the rounds whose median each sample takes.
        buckets: numbers of tokens of a step, rising, that shorter steps are padded to.
        of_drafts: whether sizes are nodes, not tokens that are run together.

    Raises:
        ProfileError: there are no points, or combinations are missing.
    """

    def __init__(
        self,
        points: Sequence[Mapping[str, Any]],
        samples: NDArray[np.integer[Any]],
        buckets: Sequence[int] = (),
        *,
        of_drafts: bool = False,
    ) -> None:
        measured = {(row["context"], row["batch"], row["tokens"]): row["ms"] for row in points}
        self.contexts, self.batches, self.sizes = (
            tuple(sorted({key[place] for key in measured})) for place in range(3)
        )
        if not measured or len(measured) != len(self.contexts) * len(self.batches) * len(self.sizes):
            raise ProfileError("its costs are not those of every context, batch and size")
        self._buckets, self._of_drafts = tuple(buckets), of_drafts
        pooled: dict[tuple[int, int, float], list[list[float]]] = {}
        for (context, batch, size), ms in measured.items():
            pooled.setdefault((context, batch, self._rows(batch, size)), []).append(ms)
        keys = sorted(pooled)
        drawn = [np.median(np.asarray(pooled[key])[:, samples], axis=(0, 2)) for key in keys]
        values = _monotone(np.asarray(keys, np.float64), np.stack(drawn, axis=1))
        self._knots: dict[tuple[int, int], tuple[Floats, Floats]] = {}
        for corner in {key[:2] for key in keys}:
            places = [place for place, key in enumerate(keys) if key[:2] == corner]
            self._knots[corner] = np.asarray([keys[place][2] for place in places]), values[:, places]

    def milliseconds(self, context: float, batch: float, sizes: ArrayLike) -> Floats:
        """``[samples, len(sizes)]``: of a step with `sizes` tokens of each request, which may be means.

        Raises:
            ProfileError: the context, the batch or a size lies outside what was measured.
        """
        asked = np.asarray(sizes, np.float64)
        check_covered("sizes", (asked.min(), asked.max()), self.sizes)
        rows = np.asarray([self._rows(batch, size) for size in asked])
        total: Floats | float = 0.0
        for context_corner, context_share in _between("contexts", context, self.contexts):
            for batch_corner, batch_share in _between("batches", batch, self.batches):
                knots, values = self._knots[context_corner, batch_corner]
                total = total + context_share * batch_share * _interpolated(knots, values, rows)
        return np.asarray(total)

    def _rows(self, batch: float, size: float) -> float:
        """Of the graph that runs `size` tokens of each request; of drafts, nodes of one."""
        if self._of_drafts:
            return size
        rows = round(batch * size, 6)
        return bucket_of(int(np.ceil(rows)), self._buckets) or rows


def check_covered(what: str, asked: tuple[float, float], measured: Sequence[float]) -> None:
    """Raise ProfileError unless both ends lie within what was measured."""
    low, high = min(measured), max(measured)
    if asked[0] < low - 1e-9 or asked[1] > high + 1e-9:
        outside = asked[0] if asked[0] < low else asked[1]
        raise ProfileError(f"it covers {what} of {low:g} to {high:g}; {outside:g} is asked")


def _between(what: str, value: float, measured: Sequence[int]) -> list[tuple[int, float]]:
    """The measured neighbours of a value, and how much each counts."""
    check_covered(what, (value, value), measured)
    upper = next((place for place, known in enumerate(measured) if known >= value), len(measured) - 1)
    if measured[upper] <= value or not upper:
        return [(measured[upper], 1.0)]
    low, high = measured[upper - 1], measured[upper]
    share = (value - low) / (high - low)
    return [(low, 1 - share), (high, share)]


def _interpolated(knots: Floats, values: Floats, asked: Floats) -> Floats:
    """Linear between knots; the ends hold beyond them, where a graph of one size runs."""
    if len(knots) == 1:
        return np.repeat(values, len(asked), axis=1)
    asked = np.clip(asked, knots[0], knots[-1])
    upper = np.clip(np.searchsorted(knots, asked), 1, len(knots) - 1)
    share = (asked - knots[upper - 1]) / (knots[upper] - knots[upper - 1])
    return np.asarray(values[:, upper - 1] * (1 - share) + values[:, upper] * share)


def _monotone(keys: Floats, values: Floats) -> Floats:
    """``[samples, points]``, rising with every coordinate of ``keys [points, 3]``."""
    below = (keys[:, None, :] <= keys[None, :, :]).all(axis=2)  # [i, j]: point i is nowhere above point j
    greatest = np.where(below[None], values[:, :, None], -np.inf).max(axis=1)
    least = np.where(below.T[None], values[:, :, None], np.inf).min(axis=1)
    return np.asarray((greatest + least) / 2)
