"""Speed-ups: an arm against the baseline, by load point and by category.

By load point it is the ratio of output tokens per second over the measured windows. By category it is
Spec-Bench's figure (arXiv 2401.07851): each request's output tokens / latency, prefill included, averaged
over requests; the speed-up is the ratio of the two averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadtest.acceptance import acceptance_length, acceptance_rate
from loadtest.bootstrap import Pairs, relative_interval
from loadtest.cells import MeasuredCell, cells_of
from loadtest.measures import measure, output_tokens
from loadtest.plan import LoadPoint, load_points
from loadtest.records import RequestRecord
from loadtest.schema import CategoryReport, SpeedUp
from loadtest.settings import Arm, SweepSettings


def speed_ups(settings: SweepSettings, cells: Sequence[MeasuredCell]) -> list[SpeedUp]:
    """Every arm but the baseline at every concurrency that both have finished in some round."""
    found = [
        _speed_up(arm, load, _rounds(settings, cells, arm, load), settings.seed)
        for load in load_points(settings)
        if load.kind == "closed"
        for arm in settings.arms[1:]
    ]
    return [speed_up for speed_up in found if speed_up is not None]


def _rounds(
    settings: SweepSettings, cells: Sequence[MeasuredCell], arm: Arm, load: LoadPoint
) -> list[tuple[MeasuredCell, MeasuredCell]]:
    """(arm, baseline) of each round in which both delivered tokens."""
    base = {
        cell.cell.round: cell for cell in cells_of(cells, settings.baseline.name, load.label) if cell.rate
    }
    here = [cell for cell in cells_of(cells, arm.name, load.label) if cell.rate]
    return [(cell, base[cell.cell.round]) for cell in here if cell.cell.round in base]


def _speed_up(
    arm: Arm, load: LoadPoint, rounds: Sequence[tuple[MeasuredCell, MeasuredCell]], seed: int
) -> SpeedUp | None:
    pairs = [matched for here, base in rounds if len(matched := _pairs(here, base))]
    if not pairs:
        return None
    value = _pooled([here for here, _ in rounds]) / _pooled([base for _, base in rounds])
    low, high = relative_interval(pairs, seed)
    completed = [record for here, _ in rounds for record in here.measured if record.completed]
    return SpeedUp(
        arm=arm.name,
        load=load.label,
        level=load.level,
        value=value,
        low=value * low,
        high=value * high,
        by_round=[(here.rate or 0.0) / (base.rate or 1.0) for here, base in rounds],
        ceiling=acceptance_length(completed),
    )


def _pooled(cells: Sequence[MeasuredCell]) -> float:
    return sum(cell.tokens for cell in cells) / sum(cell.seconds for cell in cells)


def _pairs(here: MeasuredCell, base: MeasuredCell) -> Pairs:
    """Tokens and latency of the requests that both arms completed; see :data:`loadtest.bootstrap.Pairs`."""
    partners = {record.index: record for record in base.measured if record.completed}
    both = [
        (record, partners[record.index])
        for record in here.measured
        if record.completed and record.index in partners
    ]
    rows = [(*_tokens_and_latency(record), *_tokens_and_latency(partner)) for record, partner in both]
    return np.array([row for row in rows if all(row)], dtype=np.float64).reshape(-1, 4)


def _tokens_and_latency(record: RequestRecord) -> tuple[float, float]:
    return float(output_tokens(record) or 0), measure(record).latency


def by_category(
    settings: SweepSettings,
    everything: Mapping[str, Sequence[RequestRecord]],
    at_lowest: Mapping[str, Sequence[RequestRecord]],
) -> list[CategoryReport]:
    """One entry for each category and arm.

    Args:
        settings: names the arms and the baseline.
        everything: measured requests of each arm, for acceptance.
        at_lowest: those at the lowest concurrency, for speed; empty if there was no closed loop.
    """
    names = dict.fromkeys(record.category for records in everything.values() for record in records)
    return [
        _category(arm.name, category, settings.baseline.name, everything, at_lowest)
        for category in names
        for arm in settings.arms
    ]


def _category(
    arm: str,
    category: str,
    baseline: str,
    everything: Mapping[str, Sequence[RequestRecord]],
    at_lowest: Mapping[str, Sequence[RequestRecord]],
) -> CategoryReport:
    completed = [record for record in everything[arm] if record.category == category and record.completed]
    here, base = (
        [record for record in at_lowest.get(name, ()) if record.category == category]
        for name in (arm, baseline)
    )
    return CategoryReport(
        arm=arm,
        category=category,
        requests=len(completed),
        acceptance_length=acceptance_length(completed),
        acceptance_rate=acceptance_rate(completed),
        tokens_per_second=_mean_speed(here),
        speedup=None if arm == baseline else mean_speed_ratio(here, base),
    )


def mean_speed_ratio(here: Sequence[RequestRecord], base: Sequence[RequestRecord]) -> float | None:
    """Ratio of the mean tokens per second of two sets of requests; None if either has none."""
    speed, reference = _mean_speed(here), _mean_speed(base)
    return speed / reference if speed and reference else None


def _mean_speed(records: Sequence[RequestRecord]) -> float | None:
    speeds = [measure(record).tokens_per_second for record in records if record.completed]
    known = [speed for speed in speeds if speed is not None]
    return float(np.mean(known)) if known else None
