"""Speed-ups: an arm against the baseline, by load point and by kind of prompt.

There is one definition: output tokens per second of the arm / those of the baseline. At a load they are counted over
the measured windows; of a kind of prompt they are the tokens of its requests by the time these took, at the lowest
concurrency. How sure a ratio is, and whether it shows anything, is :mod:`loadtest.interval`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loadtest.acceptance import acceptance_length, acceptance_rate
from loadtest.cells import MeasuredCell, cells_of, measured_requests
from loadtest.interval import Drift, Measured, Pairs, drift_of, interval, ratio
from loadtest.measures import measure, output_tokens
from loadtest.plan import LoadPoint, load_points
from loadtest.records import RequestRecord
from loadtest.schema import CategoryReport, Ratio, SpeedUp, Verdict
from loadtest.settings import Arm, SweepSettings

Round = tuple[MeasuredCell, MeasuredCell]
"""An arm's cell and the baseline's, at one load in one round."""


def speed_ups(settings: SweepSettings, cells: Sequence[MeasuredCell]) -> list[SpeedUp]:
    """Every arm but the baseline at every concurrency that both have finished in some round."""
    found = {arm.name: _by_load(settings, cells, arm) for arm in settings.arms[1:]}
    return [
        SpeedUp(
            **_verdict(measured, drift_of(by_load.values())),
            arm=arm,
            load=load.label,
            level=load.level,
            by_round=list(measured.by_round),
            ceiling=_acceptance(cells, arm, load.label),
        )
        for load in load_points(settings)
        for arm, by_load in found.items()
        if (measured := by_load.get(load)) is not None
    ]


def _by_load(settings: SweepSettings, cells: Sequence[MeasuredCell], arm: Arm) -> dict[LoadPoint, Measured]:
    loads = [load for load in load_points(settings) if load.kind == "closed"]
    rounds = {load: _rounds(settings, cells, arm, load.label) for load in loads}
    return {load: _measured(found) for load, found in rounds.items() if found}


def _rounds(settings: SweepSettings, cells: Sequence[MeasuredCell], arm: Arm, load: str) -> list[Round]:
    """The rounds in which both delivered tokens, and at least one request was answered by both."""
    base = {cell.cell.round: cell for cell in cells_of(cells, settings.baseline.name, load) if cell.rate}
    here = [cell for cell in cells_of(cells, arm.name, load) if cell.rate]
    both = [(cell, base[cell.cell.round]) for cell in here if cell.cell.round in base]
    return [(cell, other) for cell, other in both if len(_pairs(cell, other))]


def _measured(rounds: Sequence[Round]) -> Measured:
    value = _pooled([here for here, _ in rounds]) / _pooled([base for _, base in rounds])
    by_round = [(here.rate or 0.0) / (base.rate or 1.0) for here, base in rounds]
    return Measured(value, by_round, [_pairs(here, base) for here, base in rounds])


def _pooled(cells: Sequence[MeasuredCell]) -> float:
    return sum(cell.tokens for cell in cells) / sum(cell.seconds for cell in cells)


def _acceptance(cells: Sequence[MeasuredCell], arm: str, load: str) -> float | None:
    measured = measured_requests(cells_of(cells, arm, load))
    return acceptance_length(record for record in measured if record.completed)


def _pairs(here: MeasuredCell, base: MeasuredCell, category: str | None = None) -> Pairs:
    """Tokens and latency of the requests that both arms completed, of one kind or all."""
    partners = {record.index: record for record in base.measured if record.completed}
    both = [
        (record, partners[record.index])
        for record in here.measured
        if record.completed and record.index in partners and category in (None, record.category)
    ]
    rows = [(*_tokens_and_latency(record), *_tokens_and_latency(partner)) for record, partner in both]
    return np.array([row for row in rows if all(row)], dtype=np.float64).reshape(-1, 4)


def _tokens_and_latency(record: RequestRecord) -> tuple[float, float]:
    return float(output_tokens(record) or 0), measure(record).latency


def _verdict(measured: Measured, drift: Drift | None) -> dict[str, Any]:
    """The fields of a ratio."""
    span = interval(measured, drift)
    verdict: Verdict = "not shown"
    if span is not None and span.low > 1:
        verdict = "faster"
    elif span is not None and span.high < 1:
        verdict = "slower"
    low, high = (None, None) if span is None else (span.low, span.high)
    return {"value": measured.value, "low": low, "high": high, "verdict": verdict}


def by_category(
    settings: SweepSettings, cells: Sequence[MeasuredCell], lowest: LoadPoint | None
) -> list[CategoryReport]:
    """One entry for each kind of prompt and arm; speed at the lowest concurrency, if there was a closed loop."""
    names = dict.fromkeys(record.category for record in measured_requests(cells))
    speedups = {
        arm.name: _by_kind(settings, cells, arm, lowest.label, list(names)) if lowest else {}
        for arm in settings.arms[1:]
    }
    return [
        _category(cells, arm.name, name, lowest, speedups.get(arm.name, {}).get(name))
        for name in names
        for arm in settings.arms
    ]


def _by_kind(
    settings: SweepSettings, cells: Sequence[MeasuredCell], arm: Arm, load: str, names: Sequence[str]
) -> Mapping[str, Ratio]:
    rounds, drift = _rounds(settings, cells, arm, load), drift_of(_by_load(settings, cells, arm).values())
    found: dict[str, Ratio] = {}
    for name in names:
        pairs = [each for here, base in rounds if len(each := _pairs(here, base, name))]
        if pairs:
            measured = Measured(ratio(np.concatenate(pairs)), [ratio(each) for each in pairs], pairs)
            found[name] = Ratio(**_verdict(measured, drift))
    return found


def _category(
    cells: Sequence[MeasuredCell], arm: str, name: str, lowest: LoadPoint | None, speedup: Ratio | None
) -> CategoryReport:
    def of_kind(load: str | None) -> list[RequestRecord]:
        found = measured_requests(cells_of(cells, arm, load))
        return [record for record in found if record.category == name and record.completed]

    completed = of_kind(None)
    return CategoryReport(
        arm=arm,
        category=name,
        requests=len(completed),
        acceptance_length=acceptance_length(completed),
        acceptance_rate=acceptance_rate(completed),
        tokens_per_second=_speed(of_kind(lowest.label)) if lowest else None,
        speedup=speedup,
    )


def _speed(records: Sequence[RequestRecord]) -> float | None:
    """Tokens of some requests by the seconds that they took."""
    tokens = sum(output_tokens(record) or 0 for record in records)
    seconds = sum(measure(record).latency for record in records) / 1000
    return tokens / seconds if tokens and seconds else None
