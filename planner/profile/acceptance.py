"""From raw records to figures with confidence intervals.

Every figure is a ratio of two sums over requests. Steps of one request resemble each other more than those of two, so
intervals come from resampling whole requests (bootstrap percentiles, 95 %).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from planner.profile.records import RequestRecord
from speculators.match import LONGEST

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio with its confidence interval, None from less than two requests; `count` is what it was divided by.

    Of nothing, the ratio is None as well.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


def summarise(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Acceptance length and rate, overall and by category; acceptance by position and by rank.

    `acceptance_length` is tokens per target step, `acceptance_rate` accepted over drafted tokens. `by_position[d]` is
    the share of the drafts with a level d + 1 in which it was accepted; `by_rank[r]` the share of the nodes with more
    than r guesses below them, reached by accepted tokens, at which guess r was accepted. `by_match[m]` is how many
    tokens of a draft were accepted where the last m tokens had stood together before (the last entry: m or more).
    """
    figures: dict[str, Any] = _overall(records)
    names = sorted({record.category for record in records})
    figures["by_category"] = {
        name: _overall([record for record in records if record.category == name]) for name in names
    }
    depth = max((draft.depth for record in records for draft in record.drafts), default=0)
    figures["by_position"] = [_told(records, partial(_at_position, position=d)) for d in range(depth)]
    most = max(
        (count for record in records for draft in record.drafts for count in draft.children), default=0
    )
    figures["by_rank"] = [_told(records, partial(_at_rank, rank=r)) for r in range(most)]
    figures["by_match"] = [_told(records, partial(_after_match, match=m)) for m in range(LONGEST + 1)]
    return figures


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Figure:
    """Sum over sum, one pair a request, with the interval of resampled requests."""
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    above, below = above[below > 0], below[below > 0]
    total = below.sum()
    value = float(above.sum() / total) if total else None
    if len(below) < 2:
        return Figure(value, None, None, int(total))
    drawn = np.random.default_rng(seed).integers(0, len(above), (_RESAMPLES, len(above)))
    ratios = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Figure(value, float(low), float(high), int(total))


def _overall(records: Sequence[RequestRecord]) -> dict[str, Any]:
    return {
        "requests": len(records),
        "acceptance_length": _told(records, lambda record: (record.tokens, record.steps)),
        "acceptance_rate": _told(
            records,
            lambda record: (
                sum(len(draft.ranks) for draft in record.drafts),
                sum(draft.nodes for draft in record.drafts),
            ),
        ),
    }


def _told(
    records: Sequence[RequestRecord], counts: Callable[[RequestRecord], tuple[int, int]]
) -> dict[str, Any]:
    pairs = [counts(record) for record in records]
    return asdict(ratio([above for above, _ in pairs], [below for _, below in pairs]))


def _at_position(record: RequestRecord, position: int) -> tuple[int, int]:
    drafted = [draft for draft in record.drafts if draft.depth > position]
    return sum(len(draft.ranks) > position for draft in drafted), len(drafted)


def _at_rank(record: RequestRecord, rank: int) -> tuple[int, int]:
    hits = trials = 0
    for draft in record.drafts:
        trials += sum(count > rank for count in draft.children)
        hits += draft.ranks.count(rank)
    return hits, trials


def _after_match(record: RequestRecord, match: int) -> tuple[int, int]:
    drafted = [draft for draft in record.drafts if draft.match == match]
    return sum(len(draft.path) for draft in drafted), len(drafted)
