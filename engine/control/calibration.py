"""What steps cost here and now: a plan's costs of another machine, brought to this one in a few seconds at start.

The points of the plan's table are run on the engine's own cache before there are requests, those first that the others
lie between, again and again in the same order while time is left; of each the median counts. Points that there was no
time or no room for are the plan's, times what those around them have changed. That live step times go on to correct
the table (`engine.control.costs`) makes a rough one good enough to begin with.

Example::

    plan = with_costs(plan, calibrate(runner, plan.verify_costs, slots=16, most=2048))
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.plan import CostPoint, Plan
from engine.runner import Runner, SequenceInput

SECONDS = 8.0  # so that with what comes before and after it stays below ten
_ROUNDS = 3
_REPEATS = 3  # in a row: the first step of another shape has to prepare its graph
Key = tuple[int, int, int]
"""Context, batch, and tokens of a request."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Costs, and how they were come by.

    Attributes:
        costs: every point of the plan's table.
        measured: how many of them were run.
        seconds: that it took.
        ratio: median of measured over planned milliseconds.
    """

    costs: list[CostPoint]
    measured: int
    seconds: float
    ratio: float

    def __str__(self) -> str:
        return (
            f"costs of {self.measured} of {len(self.costs)} kinds of steps measured in {self.seconds:.1f} s: "
            f"{self.ratio:.2f} times the plan's"
        )


def calibrate(
    runner: Runner,
    planned: Sequence[CostPoint],
    *,
    slots: int,
    most: int,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Calibration:
    """Measure what a plan's steps cost with a runner whose cache nobody uses yet.

    Args:
        runner: the target.
        planned: costs of verification, of another machine.
        slots: requests at once.
        most: tokens of a request.
        seconds: when to end; a step that is not expected to end before is not begun.
        clock: seconds.
    """
    table = {(point.context, point.batch, point.tokens): max(point.ms, 1e-6) for point in planned}
    steps = {
        key: batch
        for key in _corners_first(table)
        if key[1] <= slots and (batch := _step(runner, *key, most)) is not None
    }
    begun = clock()
    found: dict[Key, list[float]] = {}
    overhead = 1.0  # of what steps of another shape prepare, as far as it is known
    for _ in range(_ROUNDS):
        for key, batch in steps.items():
            if clock() - begun >= seconds:
                break
            expected = found[key][-1] if key in found else table[key] * _changed(key, found, table)
            if clock() - begun + overhead * _REPEATS * expected / 1e3 > seconds:
                continue
            times = _milliseconds(runner, batch, clock)
            found.setdefault(key, []).append(statistics.median(times))
            overhead = max(overhead, sum(times) / (_REPEATS * found[key][-1]))
    medians = {key: [statistics.median(times)] for key, times in found.items()}
    costs = [
        CostPoint(
            context=point.context,
            batch=point.batch,
            tokens=point.tokens,
            ms=round(_here(point, medians, table), 4),
        )
        for point in planned
    ]
    ratios = [times[0] / table[key] for key, times in medians.items()]
    return Calibration(costs, len(medians), clock() - begun, statistics.median(ratios) if ratios else 1.0)


def with_costs(plan: Plan, found: Calibration) -> Plan:
    """A plan on the machine that was calibrated; drafting is taken to have changed as verification has."""
    deployments = {
        name: each.model_copy(
            update={
                "draft_costs": [
                    point.model_copy(update={"ms": point.ms * found.ratio}) for point in each.draft_costs
                ]
            }
        )
        for name, each in plan.deployments.items()
    }
    return plan.model_copy(update={"verify_costs": found.costs, "deployments": deployments})


def _milliseconds(runner: Runner, batch: Sequence[SequenceInput], clock: Callable[[], float]) -> list[float]:
    times = []
    for _ in range(_REPEATS):
        started = clock()
        runner.forward(batch)
        times.append((clock() - started) * 1e3)
    return times


def _here(point: CostPoint, medians: Mapping[Key, Sequence[float]], table: Mapping[Key, float]) -> float:
    key = point.context, point.batch, point.tokens
    return medians[key][0] if key in medians else table[key] * _changed(key, medians, table)


def _changed(key: Key, found: Mapping[Key, Sequence[float]], table: Mapping[Key, float]) -> float:
    """What a step that was not run takes in relation to the plan: as those that were, the near ones more than the far.

    Distances are in octaves; the weight is their inverse square (Shepard's interpolation), of logarithms.
    """
    if not found:
        return 1.0
    total = weights = 0.0
    for known, times in found.items():
        apart = sum(
            math.log2((1 + max(one, other)) / (1 + min(one, other)))
            for one, other in zip(key, known, strict=True)
        )
        weight = 1 / max(apart, 1e-6) ** 2
        total += weight * math.log(max(statistics.median(times), 1e-6) / table[known])
        weights += weight
    return math.exp(total / weights)


def _corners_first(table: dict[Key, float]) -> list[Key]:
    """Every point: those at the ends of all axes, then those in the middle, then the rest; the cheap ones first."""
    orders = []
    for axis in range(3):
        values = sorted({key[axis] for key in table})
        middle = len(values) // 2
        orders.append(
            {
                value: 0 if place in (0, len(values) - 1) else 1 + (place != middle)
                for place, value in enumerate(values)
            }
        )
    return sorted(
        table, key=lambda key: (sum(order[part] for order, part in zip(orders, key, strict=True)), table[key])
    )


def _step(runner: Runner, context: int, batch: int, tokens: int, most: int) -> list[SequenceInput] | None:
    """A step of `batch` requests, `tokens` each, behind a context, whatever the cache holds; None: there is no room."""
    count = -(-(context + tokens) // runner.block_size)
    if context + tokens > most or batch * count > runner.num_blocks:
        return None
    drafted = (100 + np.arange(tokens)) % runner.vocab_size
    return [
        SequenceInput(drafted.tolist(), context, range(row * count, (row + 1) * count))
        for row in range(batch)
    ]
