"""What steps and drafts cost here and now: a plan's costs of another machine, brought to this one at start.

The points of the plan's tables are run on the engine's own cache before there are requests, those first that the others
lie between, again and again in the same order while time is left, steps and drafts by turns; of each the median counts.
Points that there was no time or no room for are the plan's, times what those around them have changed. That live times
go on to correct the tables (`engine.control.costs`) makes rough ones good enough to begin with.

Example::

    found = calibrate(runner, plan.verify_costs, slots=16, most=2048, drafts=[Drafts("mine", points, drafter, 576)])
    plan = with_costs(plan, found)
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from engine.control.drafts import MeasuredDrafts, whole_drafts
from engine.plan import CostPoint, Plan
from engine.runner import Runner, SequenceInput
from speculators.base import Speculator

SECONDS = 8.0  # so that with what comes before and after it stays below ten
_ROUNDS = 3
_REPEATS = 3  # in a row: the first step of another shape has to prepare its graph
_SHARE = 0.3  # of the time that one point may take, if it is not the first: the dearest are hardly ever worth drafting
_DRAFTS = 12  # points of a drafter's table that are run: its calls cost about as much more for each level and request
Key = tuple[int, int, int]
"""Context, batch, and tokens or nodes of a request."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Drafts:
    """A drafter whose calls are to be measured.

    Attributes:
        deployment: whose it is.
        planned: costs of its drafts, of another machine or guessed.
        speculator: none of its requests is running; it is left bound to what was measured.
        width: of the target's hidden states.
    """

    deployment: str
    planned: Sequence[CostPoint]
    speculator: Speculator
    width: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Costs, and how they were come by.

    Attributes:
        costs: every point of the table of steps.
        measured: how many of them were run.
        seconds: that it took.
        ratio: median of measured over planned milliseconds.
        draft_costs: likewise every point of the drafters that were measured, by deployment.
        draft_ratios: and their medians.
    """

    costs: list[CostPoint]
    measured: int
    seconds: float
    ratio: float
    draft_costs: Mapping[str, list[CostPoint]] = field(default_factory=dict)
    draft_ratios: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"costs of {self.measured} of {len(self.costs)} kinds of steps measured in {self.seconds:.1f} s"
        )

    @property
    def beside_plan(self) -> str:
        """How they compare with the plan's."""
        drafts = [f"; drafts of {name}: {ratio:.2f} times" for name, ratio in self.draft_ratios.items()]
        return f"{self.ratio:.2f} times the plan's{''.join(drafts)}"

    @property
    def least(self) -> str:
        """What the least step and the least drafts take."""
        drafts = [
            f", a draft of {name} {min(point.ms for point in points):.1f} ms"
            for name, points in self.draft_costs.items()
        ]
        return f"a step takes {min(point.ms for point in self.costs):.1f} ms{''.join(drafts)}"


def calibrate(
    runner: Runner,
    planned: Sequence[CostPoint],
    *,
    slots: int,
    most: int,
    drafts: Sequence[Drafts] = (),
    seconds: float = SECONDS,
    clock: Clock = time.perf_counter,
) -> Calibration:
    """Measure what steps and drafts cost with a runner whose cache nobody uses yet.

    Args:
        runner: the target.
        planned: costs of verification, of another machine or guessed.
        slots: requests at once.
        most: tokens of a request.
        drafts: drafters to measure, too.
        seconds: when to end; a step that is not expected to end before is not begun.
        clock: seconds.
    """
    steps = _Table(planned)
    begun = clock()
    end = begun + seconds
    turns = [[(steps, subject) for subject in _steps(runner, steps, slots, most, clock)]]
    tables = {each.deployment: _Table(each.planned, steps) for each in drafts}
    for each in drafts:
        table = tables[each.deployment]
        turns.append([(table, subject) for subject in _drafts(runner, table, each, slots, most, clock)])
    for _ in range(_ROUNDS):
        for table, subject in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*turns))):
            table.measure(subject, end, _SHARE * seconds, clock)
    return Calibration(
        steps.costs(),
        len(steps.found),
        clock() - begun,
        steps.ratio,
        {name: table.costs() for name, table in tables.items()},
        {name: table.ratio for name, table in tables.items()},
    )


def with_costs(plan: Plan, found: Calibration) -> Plan:
    """A plan on the machine that was calibrated; drafting that was not measured has changed as verification has."""
    deployments = {
        name: each.model_copy(
            update={
                "draft_costs": found.draft_costs.get(name)
                or [point.model_copy(update={"ms": point.ms * found.ratio}) for point in each.draft_costs]
            }
        )
        for name, each in plan.deployments.items()
    }
    return plan.model_copy(update={"verify_costs": found.costs, "deployments": deployments})


@dataclass(frozen=True, slots=True)
class _Subject:
    """A point of a table that can be run: milliseconds of one time and the next, until the clock says that it is late.

    Those that say nothing, since nothing was drafted, are none.
    """

    key: Key
    run: Callable[[float], list[float]]


class _Table:
    """Costs as they were planned, and what was found of them.

    Args:
        planned: milliseconds of another machine.
        like: what it has changed as, as long as nothing of it was found.
    """

    def __init__(self, planned: Sequence[CostPoint], like: _Table | None = None) -> None:
        self.planned, self._like = planned, like
        self.known = {(point.context, point.batch, point.tokens): max(point.ms, 1e-6) for point in planned}
        self._times: dict[Key, list[float]] = {}
        self._overhead = 1.0  # of what steps of another shape prepare, as far as it is known

    @property
    def found(self) -> dict[Key, float]:
        """Medians of what was measured."""
        return {key: statistics.median(times) for key, times in self._times.items()}

    @property
    def ratio(self) -> float:
        """Median of measured over planned milliseconds."""
        ratios = [ms / self.known[key] for key, ms in self.found.items()]
        return statistics.median(ratios) if ratios else self._like.ratio if self._like else 1.0

    def measure(self, subject: _Subject, end: float, longest: float, clock: Clock) -> None:
        """Run a point, unless it is not expected to end in time, or to take longer than a further point is worth."""
        key, begun = subject.key, clock()
        known = self._times[key][-1] if key in self._times else self._here(key)
        expected = self._overhead * _REPEATS * known / 1e3
        if begun >= end or begun + expected > end or (self._times and expected > longest):
            return
        if times := subject.run(end):
            self._times.setdefault(key, []).append(statistics.median(times))
            self._overhead = max(self._overhead, sum(times) / (len(times) * self._times[key][-1]))

    def costs(self) -> list[CostPoint]:
        """Every point as it is here."""
        found = self.found
        return [
            point.model_copy(update={"ms": round(found.get(key) or self._here(key, found), 4)})
            for point, key in zip(self.planned, self.known, strict=True)
        ]

    def _here(self, key: Key, found: Mapping[Key, float] | None = None) -> float:
        """What was not run, in relation to the plan: as what was, the near more than the far.

        Distances are in octaves; the weight is their inverse square (Shepard's interpolation), of logarithms.
        """
        found = self.found if found is None else found
        if not found:
            return self.known[key] * self.ratio
        total = weights = 0.0
        for measured, ms in found.items():
            apart = sum(
                math.log2((1 + max(one, other)) / (1 + min(one, other)))
                for one, other in zip(key, measured, strict=True)
            )
            weight = 1 / max(apart, 1e-6) ** 2
            total += weight * math.log(max(ms, 1e-6) / self.known[measured])
            weights += weight
        return self.known[key] * math.exp(total / weights)


def _steps(runner: Runner, table: _Table, slots: int, most: int, clock: Clock) -> list[_Subject]:
    """Steps of the target that there is room for."""

    def run(batch: Sequence[SequenceInput], end: float) -> list[float]:
        times: list[float] = []
        while len(times) < _REPEATS and not (times and clock() >= end):
            started = clock()
            runner.forward(batch)
            times.append((clock() - started) * 1e3)
        return times

    return [
        _Subject(key, partial(run, batch))
        for key in _corners_first(table.known)
        if key[1] <= slots and (batch := _step(runner, *key, most)) is not None
    ]


def _drafts(
    runner: Runner, table: _Table, drafts: Drafts, slots: int, most: int, clock: Clock
) -> list[_Subject]:
    """Drafts that there is room for, as many as are enough."""

    def run(key: Key, blocks: int, end: float) -> list[float]:
        context, batch, nodes = key
        requests = MeasuredDrafts(
            runner,
            drafts.speculator,
            width=drafts.width,
            blocks=blocks,
            batch=batch,
            context=context,
            clock=clock,
        )
        times: list[float] = []
        with whole_drafts(drafts.speculator):
            requests.begin(read=context - 1)
            while len(times) < _REPEATS and not (times and clock() >= end):
                milliseconds, drafted = requests.draft(nodes)
                if not drafted:
                    break
                times.append(milliseconds)
            requests.finish()
        return times

    subjects = []
    for key in _corners_first(table.known):
        context, batch, nodes = key
        length = context + nodes + 2 * _REPEATS
        blocks = -(-length // runner.block_size)
        if context > 1 and length <= most and batch <= slots and batch * blocks <= runner.num_blocks:
            subjects.append(_Subject(key, partial(run, key, blocks)))
    return subjects[:_DRAFTS]


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
