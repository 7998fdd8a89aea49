"""Speed-ups: an arm against the baseline, by load point and by kind of prompt, and how sure they are.

There is one definition: output tokens per second of the arm / those of the baseline. At a load they are counted over
the measured windows; of a kind of prompt they are the tokens of its requests by the time these took, at the lowest
concurrency.

How sure a ratio is follows from how much the rounds of a sweep differ. A round is a repetition of everything: other
prompts, another moment of the machine. So the scatter of the rounds' ratios holds all there is, the variety of prompts
and the drift of a shared machine, and an interval that knew the requests of one cell alone would mistake drift for
speed. With few rounds the scatter itself is hardly known. Therefore, on the logarithm of the ratio, the standard error
is the greatest of three figures:

 * the scatter of the rounds at this very load, or of this kind of prompt,
 * the scatter of the arm's rounds pooled over all its loads, and
 * what the differences between the requests alone would give (linearised ratio of sums),

and the interval is Student's, with the degrees of freedom of the pooled scatter, ``loads * (rounds - 1)``. In
simulations with normal drift it holds the truth in 95 of 100 cases or more, with two rounds at one load as well as at
five. With one round there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from loadtest.measures import (
    MeasuredCell,
    acceptance_length,
    acceptance_rate,
    cells_of,
    measure,
    measured_requests,
    output_tokens,
)
from loadtest.plan import LoadPoint, load_points
from loadtest.records import RequestRecord
from loadtest.schema import CategoryReport, Ratio, SpeedUp, Verdict
from loadtest.settings import Arm, SweepSettings

LEVEL = 0.95

Round = tuple[MeasuredCell, MeasuredCell]
"""An arm's cell and the baseline's, at one load in one round."""

Pairs = NDArray[np.float64]
"""``[pairs, 4]``: tokens and latency of the arm, tokens and latency of the baseline, request by request."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A ratio of all rounds together, of each round, and the requests that it comes from."""

    value: float
    by_round: Sequence[float]
    pairs: Sequence[Pairs]
    """Of each round."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How much the rounds of an arm differ: variance of a round's logarithm, from so many degrees of freedom."""

    variance: float
    freedom: int


@dataclass(frozen=True, slots=True)
class Interval:
    """The bounds between which a ratio lies."""

    low: float
    high: float


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


def ratio(pairs: Pairs) -> float:
    """Tokens per second of the arm / those of the baseline.

    By Little's law the throughput of a closed loop with c users is ``c * sum(tokens) / sum(latency)``, so the ratio of
    two arms needs nothing but the sums over their requests.
    """
    tokens, latency, base_tokens, base_latency = pairs.sum(axis=0)
    return float((tokens / latency) / (base_tokens / base_latency))


def drift_of(loads: Iterable[Measured]) -> Drift | None:
    """The scatter of an arm's rounds, pooled over its loads; None where nothing was repeated."""
    repeated = [each for each in loads if len(each.by_round) > 1]
    freedom = sum(len(each.by_round) - 1 for each in repeated)
    return Drift(sum(map(_scatter, repeated)) / freedom, freedom) if freedom else None


def interval(measured: Measured, drift: Drift | None) -> Interval | None:
    """The interval of a ratio; None if it was measured once.

    Args:
        measured: at a load, or of a kind of prompt. The kinds share their cells, so each drifts as the whole does, and
            they tell no more about the drift than one.
        drift: of the arm.
    """
    rounds = len(measured.by_round)
    if drift is None or rounds < 2:
        return None
    own = _scatter(measured) / (rounds - 1)
    variance = max(own / rounds, drift.variance / rounds, _of_requests(measured.pairs))
    reach = math.exp(float(stdtrit(drift.freedom, (1 + LEVEL) / 2)) * math.sqrt(variance))
    return Interval(measured.value / reach, measured.value * reach)


def _scatter(measured: Measured) -> float:
    """Sum of squared deviations of the rounds' logarithms."""
    logarithms = np.log(measured.by_round)
    return float(np.square(logarithms - logarithms.mean()).sum())


def _of_requests(rounds: Sequence[Pairs]) -> float:
    """Variance of the logarithm of the pooled ratio, were requests all that differs.

    Each request's influence on the logarithm is its share in the four sums, signed; the pairs are taken as independent,
    which above one user is approximate.
    """
    pairs = np.concatenate(list(rounds))
    if len(pairs) < 2:
        return 0.0
    influence = pairs / pairs.sum(axis=0) @ np.array([1.0, -1.0, -1.0, 1.0])
    return float(np.square(influence).sum() * len(pairs) / (len(pairs) - 1))
