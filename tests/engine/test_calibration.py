"""Costs measured at start, on a clock that nothing but steps moves: in time, near enough, and only where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.control.calibration import SECONDS, Calibration, calibrate, with_costs
from engine.control.table import CostTable
from engine.plan import CostPoint
from engine.runner import SequenceInput
from tests.engine.simulated import plan_of
from tests.engine.tables import TableRunner
from tests.planner.synthetic_profile import profile, records

CONTEXTS, BATCHES, TOKENS = (32, 512, 2000), (1, 2, 4, 8, 16), (1, 2, 4, 6, 8, 16)
Cost = Callable[[int, int, int], float]


def of_another_machine(context: int, batch: int, tokens: int) -> float:
    return 20 + 0.2 * batch * tokens + batch * context / 500


def of_this_machine(context: int, batch: int, tokens: int) -> float:
    """Slower, and more so for rows."""
    return 30 + 1.0 * batch * tokens + batch * context / 200


def table(cost: Cost, factor: float = 1.0) -> list[CostPoint]:
    return [
        CostPoint(context=context, batch=batch, tokens=tokens, ms=factor * cost(context, batch, tokens))
        for context in CONTEXTS
        for batch in BATCHES
        for tokens in TOKENS
    ]


class Stub(TableRunner):
    """Steps that take as long as they are said to; the first one of another shape half as long again."""

    def __init__(self, cost: Cost, num_blocks: int = 4096) -> None:
        super().__init__(num_blocks=num_blocks)
        self.cost, self.now, self.steps = cost, 0.0, 0
        self.asked: list[tuple[int, int, int]] = []

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        key = batch[0].past, len(batch), len(batch[0].tokens)
        first = not self.asked or self.asked[-1] != key
        self.asked.append(key)
        self.now += (1.5 if first else 1) * self.cost(*key) / 1e3
        held = [block for item in batch for block in item.blocks]
        assert len(set(held)) == len(held) and max(held) < self.num_blocks
        assert all(item.past + len(item.tokens) <= len(item.blocks) * self.block_size for item in batch)
        return np.zeros((1, self.vocab_size), np.float32)


def calibrated(runner: Stub, planned: list[CostPoint], **changes: object) -> Calibration:
    settings = {"slots": 16, "most": 4096, **changes}
    return calibrate(runner, planned, clock=lambda: runner.now, **settings)  # type: ignore[arg-type]


def worst(found: Calibration, truth: Cost) -> float:
    """How far a point is off, as a logarithm."""
    return max(
        abs(math.log(point.ms / truth(point.context, point.batch, point.tokens))) for point in found.costs
    )


def test_another_machine_s_table_is_brought_here_within_its_time() -> None:
    runner = Stub(of_this_machine)
    found = calibrated(runner, table(of_another_machine))
    assert runner.now < 10 and found.seconds == runner.now
    assert 0 < found.measured < len(found.costs) == 90
    assert runner.now > 0.7 * SECONDS, "what time there is is used"
    before = Calibration(table(of_another_machine), 0, 0.0, 1.0)
    assert worst(found, of_this_machine) < 0.3 < 1.3 < worst(before, of_this_machine)
    assert [(p.context, p.batch, p.tokens) for p in found.costs] == [
        (p.context, p.batch, p.tokens) for p in table(of_another_machine)
    ]


def test_with_time_enough_every_point_is_what_it_is() -> None:
    found = calibrated(Stub(of_this_machine), table(of_another_machine), seconds=1000.0)
    assert found.measured == 90 and worst(found, of_this_machine) < 1e-3
    rows = [{**point.model_dump(), "ms": [point.ms]} for point in found.costs]
    CostTable(rows, np.zeros((1, 1), np.int64))  # takes it


@pytest.mark.parametrize("slower", [1.0, 30.0, 300.0])
def test_it_ends_in_time_on_a_slow_machine_too(slower: float) -> None:
    """But for the first point, of which nobody can know how long it takes."""
    runner = Stub(lambda *key: slower * of_another_machine(*key))
    found = calibrated(runner, table(of_another_machine))
    first = 3.5 * slower * of_another_machine(32, 1, 1) / 1e3
    assert found.seconds <= SECONDS + first
    assert found.measured
    assert worst(found, lambda *key: slower * of_another_machine(*key)) < 1e-3


def test_a_machine_that_is_as_planned_keeps_its_table() -> None:
    found = calibrated(Stub(of_another_machine), table(of_another_machine), seconds=2.0)
    assert found.ratio == pytest.approx(1, abs=1e-3) and worst(found, of_another_machine) < 1e-3


def test_without_time_nothing_is_measured_and_it_is_the_plan() -> None:
    never = Stub(of_this_machine)
    found = calibrated(never, table(of_another_machine), seconds=0.0)
    assert not never.asked and found.measured == 0 and found.ratio == 1
    assert worst(found, of_another_machine) < 1e-3


def test_what_the_deployment_has_no_room_for_is_not_run() -> None:
    runner = Stub(of_this_machine, num_blocks=4 * 20)
    found = calibrated(runner, table(of_another_machine), slots=4, most=600, seconds=1000.0)
    assert {key[0] for key in runner.asked} == {32, 512} and {key[1] for key in runner.asked} == {1, 2, 4}
    assert found.measured == 2 * 3 * 6 and len(found.costs) == 90
    assert str(found).startswith("costs of 36 of 90 kinds of steps measured in ")


def test_drafting_changes_as_verification_has() -> None:
    plan = plan_of([profile(records(0.7), of_another_machine, lambda *_: 3.0)])
    found = Calibration(
        [point.model_copy(update={"ms": 2 * point.ms}) for point in plan.verify_costs], 1, 1.0, 2.0
    )
    there = with_costs(plan, found)
    assert {point.ms for point in there.deployments["mine"].draft_costs} == {6.0}
    assert there.verify_costs == found.costs and there.cells == plan.cells
