"""What a step costs now: the plan's table, corrected by the steps that are run.

The logarithm of measured over planned milliseconds is taken for a field over batch, tokens of a request and context:
something that is the same everywhere (another clock, threads that were taken away) and a smooth shape on top of it
(another machine's table). Both are estimated together by a Kalman filter on a coarse grid, whose covariance says where
a measurement would tell something: a way of drafting that was not taken for long is uncertain, and is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.control.table import CostTable
from engine.plan import CostPoint

Floats = NDArray[np.float64]
_REACH = (2.0, 1.5, 1.5)  # octaves of batch, tokens and context over which a correction is much the same
_EVERYWHERE, _SHAPE, _NOISE = 1.0, 0.3, 0.01  # variances of the logarithm
_PLANNED = 0.1  # share of them that is left where there is a plan
_DRIFT = 0.0005  # share of what was known that is forgotten in a step
_SHAKEN = 0.2  # likewise in one that took quite another time than was expected
_FIRST, _SELDOM = 100, 4  # steps, after which one of four that are as expected is enough
_SURPRISE = 2.5  # standard deviations above which that is so; more of them than this do not count
_SHORTEST_CONTEXT = 256
_CONTEXT_STEP = 128  # contexts that lie closer share a row of the table
_ROWS_KEPT = 256


class LiveCosts:
    """Milliseconds by context, batch and tokens of a request.

    Args:
        points: of the plan.
        buckets: numbers of tokens that steps are padded to.
        of_drafts: see `CostTable`.
    """

    def __init__(
        self, points: Sequence[CostPoint], buckets: Sequence[int] = (), *, of_drafts: bool = False
    ) -> None:
        rows = [{**point.model_dump(), "ms": [max(point.ms, 1e-6)]} for point in points]
        self._table = CostTable(rows, np.zeros((1, 1), np.int64), buckets, of_drafts=of_drafts)
        sizes, batches = self._table.sizes, self._table.batches
        self._sizes = np.arange(math.floor(math.log2(max(sizes))) + 2, dtype=np.float64)
        levels = np.arange(math.ceil(math.log2(max(batches))) + 1)
        places = np.arange(_place(max(self._table.contexts)) + 1)
        self._shape = (len(levels), len(self._sizes), len(places))
        grid = np.stack(np.meshgrid(levels, self._sizes, places, indexing="ij"), axis=-1).reshape(-1, 3)
        apart = (np.abs(grid[:, None] - grid[None]) / _REACH).sum(axis=2)
        self._unknown = _EVERYWHERE + _SHAPE * np.exp(-apart)
        self._covariance = _PLANNED * self._unknown
        self._field = np.zeros(len(grid))
        self._steps = 0
        self._rows: dict[tuple[int, int, int], tuple[Floats, Floats]] = {}
        self._corrected: dict[tuple[int, int, int], Floats] = {}  # as long as nothing is learned

    def planned(self, context: float, batch: int, tokens: int) -> float:
        """Milliseconds of a step of `tokens` tokens in all by the table alone; beyond what was measured, its end."""
        return float(self._planned(context, batch, tokens)[0][-1])

    def milliseconds(self, context: float, batch: int, most: int, doubt: float = 0.0) -> Floats:
        """Of steps of `batch`, `batch` + 1, ... `most` tokens in all, never falling.

        Args:
            context: tokens of each request, on average.
            batch: requests.
            most: tokens in all.
            doubt: how many standard deviations less than is expected.
        """
        near = _near(context)
        if not doubt and (known := self._corrected.get((near, batch, most))) is not None:
            return known
        planned, octaves = self._planned(near, batch, most)
        line = self._line(context, batch)
        field = self._field[line]
        if doubt:
            field = field - doubt * np.sqrt(self._apart(line))
        found = np.asarray(np.maximum.accumulate(planned * np.exp(np.interp(octaves, self._sizes, field))))
        if not doubt:
            if len(self._corrected) >= _ROWS_KEPT:
                self._corrected.clear()
            self._corrected[near, batch, most] = found
        return found

    def doubt(self, context: float, batch: int, nodes: int, others: int) -> float:
        """Standard deviation of how steps of `nodes` and of `others` nodes in all compare, as a logarithm."""
        line = self._line(context, batch)
        one, two = (line.start + line.step * self._column(batch, batch + count) for count in (nodes, others))
        known = self._covariance
        return math.sqrt(max(0.0, float(known[one, one] + known[two, two] - 2 * known[one, two])))

    def learn(self, context: float, batch: int, tokens: int, milliseconds: float) -> None:
        """Take in how long a step of `tokens` tokens in all has taken."""
        if milliseconds <= 0:
            return
        line = self._line(context, batch)
        cell = line.start + line.step * self._column(batch, tokens)
        told = math.log(milliseconds / self.planned(context, batch, tokens))
        column = self._covariance[:, cell]
        variance = float(column[cell]) + _NOISE
        limit, surprise = _SURPRISE * math.sqrt(variance), told - float(self._field[cell])
        self._steps += 1
        if self._steps > _FIRST and self._steps % _SELDOM and abs(surprise) < limit:
            return
        drift = _SHAKEN if abs(surprise) > limit else _DRIFT * _SELDOM
        surprise = max(-limit, min(limit, surprise))
        self._field += column * (surprise / variance)
        self._covariance -= np.outer(column, column / variance)
        self._covariance += drift * (self._unknown - self._covariance)
        self._corrected.clear()

    def _apart(self, line: slice) -> Floats:
        """Variance of each size's correction against that of one token."""
        part = self._covariance[line, line]
        return np.asarray(np.maximum(np.diag(part) + part[0, 0] - 2 * part[0], 0.0))

    def _line(self, context: float, batch: int) -> slice:
        """Cells of all sizes for a batch and context; `places` vary fastest, hence the step."""
        level = min(self._shape[0] - 1, round(math.log2(batch)))
        place = min(self._shape[2] - 1, _place(_near(context)))
        first = level * self._shape[1] * self._shape[2] + place
        return slice(first, first + self._shape[1] * self._shape[2], self._shape[2])

    def _column(self, batch: int, tokens: int) -> int:
        return min(self._shape[1] - 1, round(math.log2(max(1.0, tokens / batch))))

    def _planned(self, context: float, batch: int, most: int) -> tuple[Floats, Floats]:
        """Of `batch` ... `most` tokens: milliseconds, and octaves of tokens of a request."""
        table = self._table
        near = _near(context)
        key = (near, batch, most)
        if key not in self._rows:
            if len(self._rows) >= _ROWS_KEPT:
                self._rows.clear()
            sizes = np.arange(batch, most + 1) / batch
            inside = np.clip(sizes, min(table.sizes), max(table.sizes))
            found = table.milliseconds(
                min(max(near, min(table.contexts)), max(table.contexts)),
                min(max(batch, min(table.batches)), max(table.batches)),
                inside,
            )
            self._rows[key] = found[0], np.log2(sizes)
        return self._rows[key]


def _near(context: float) -> int:
    return round(context / _CONTEXT_STEP) * _CONTEXT_STEP


def _place(context: float) -> int:
    return max(0, round(math.log2(max(context, 1) / _SHORTEST_CONTEXT)))
