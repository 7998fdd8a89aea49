"""Costs measured at start, on a clock that nothing but steps moves: in time, near enough, and only where asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.control.calibration import SECONDS, Calibration, Drafts, calibrate, with_costs
from engine.control.drafts import MeasuredDrafts, whole_drafts
from engine.control.table import CostTable
from engine.plan import CostPoint
from engine.runner import SequenceInput
from speculators.base import Speculator
from speculators.draft_model.draft import DraftModelDrafter
from speculators.eagle.draft import EagleDrafter
from speculators.graphs import DrafterRows
from speculators.growth import Likeliest
from speculators.medusa.draft import MedusaDrafter
from speculators.outcome import StepOutcome
from speculators.tree import EMPTY, TokenTree
from tests.engine.simulated import plan_of
from tests.engine.tables import WIDTH, TableDrafter, TableHeads, TableRunner
from tests.planner.synthetic_profile import profile, records

CONTEXTS, BATCHES, TOKENS = (32, 512, 2000), (1, 2, 4, 8, 16), (1, 2, 4, 6, 8, 16)
Cost = Callable[[int, int, int], float]
NEVER = 1.0  # a log-probability that no chain has


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


@pytest.mark.parametrize(("slower", "off_by"), [(1.0, 1.001), (30.0, 1.001), (300.0, 1.501)])
def test_it_ends_in_time_on_a_slow_machine_too(slower: float, off_by: float) -> None:
    """But for the first step, of which nobody can know how long it takes; where it is the only one, it stands."""
    runner = Stub(lambda *key: slower * of_another_machine(*key))
    found = calibrated(runner, table(of_another_machine))
    first = 1.5 * slower * of_another_machine(32, 1, 1) / 1e3
    assert found.seconds <= SECONDS + first
    assert found.measured
    assert worst(found, lambda *key: slower * of_another_machine(*key)) < math.log(off_by)


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


def test_drafting_that_is_not_measured_changes_as_verification_has() -> None:
    plan = plan_of([profile(records(0.7), of_another_machine, lambda *_: 3.0)])
    found = Calibration(
        [point.model_copy(update={"ms": 2 * point.ms}) for point in plan.verify_costs], 1, 1.0, 2.0
    )
    there = with_costs(plan, found)
    assert {point.ms for point in there.deployments["mine"].draft_costs} == {6.0}
    assert there.verify_costs == found.costs and there.cells == plan.cells


def draft_here(context: int, batch: int, nodes: int) -> float:
    return 1.0 + nodes * (2.0 + 0.1 * batch + context / 2000)


class Chain(Speculator):
    """Chains whose calls take as long as they are said to; unsure, it ends each after its first token.

    Args:
        runner: whose clock they move.
        cost: milliseconds by context, batch and nodes.
        least: shortest context that it drafts for.
    """

    name, max_draft_length, ends_drafts = "chain", 8, True

    def __init__(self, runner: Stub, cost: Cost, least: int = 0) -> None:
        self._runner, self._cost, self._least = runner, cost, least
        self._texts: dict[int, int] = {}
        self.asked: list[tuple[int, int]] = []

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        assert request_id not in self._texts and rows is not None and rows.drafted == len(prompt) - 1
        assert len(prompt) + self.max_draft_length + 6 <= len(rows.blocks) * self._runner.block_size
        self._texts[request_id] = len(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        context = self._texts[request_ids[0]]
        self.asked.append((len(request_ids), context))
        count = min(budgets[0], 1 if self.ends_drafts else self.max_draft_length)
        if context < self._least:
            return [EMPTY for _ in request_ids]
        self._runner.now += self._cost(context, len(request_ids), count) / 1e3
        return [TokenTree.chain(tuple(range(count))) for _ in request_ids]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        assert request_id in self._texts

    def finish(self, request_id: int) -> None:
        del self._texts[request_id]


def drafts_of(speculator: Speculator, factor: float) -> Drafts:
    """With a plan whose costs are those of `draft_here`, times a factor."""
    planned = [
        CostPoint(context=context, batch=batch, tokens=nodes, ms=factor * draft_here(context, batch, nodes))
        for context in CONTEXTS
        for batch in BATCHES
        for nodes in (1, 3, 5, 8)
    ]
    return Drafts("mine", planned, speculator, 4)


def off(points: Sequence[CostPoint]) -> float:
    """By which factor the worst one is."""
    return max(
        math.exp(abs(math.log(point.ms / draft_here(point.context, point.batch, point.tokens))))
        for point in points
    )


@pytest.mark.parametrize("factor", [4.0, 0.1])
def test_drafts_that_are_planned_wrong_by_a_factor_of_their_own_are_measured(factor: float) -> None:
    runner = Stub(of_this_machine)
    chain = Chain(runner, draft_here)
    drafts = drafts_of(chain, factor)
    found = calibrated(runner, table(of_another_machine), drafts=[drafts])
    assert found.seconds < 9
    assert off(found.draft_costs["mine"]) < 1.35
    assert found.draft_ratios["mine"] == pytest.approx(1 / factor, rel=0.1)
    assert found.beside_plan.endswith(f"; drafts of mine: {found.draft_ratios['mine']:.2f} times")
    assert worst(found, of_this_machine) < 0.35, "steps are measured beside them as they are without"
    assert chain.ends_drafts and not chain._texts, "it is as it was"

    plan = plan_of([profile(records(0.7), of_another_machine, lambda *_: 3.0)])
    assert with_costs(plan, found).deployments["mine"].draft_costs == found.draft_costs["mine"]
    unmeasured = calibrated(Stub(of_this_machine), table(of_another_machine))
    scaled = [point.model_copy(update={"ms": point.ms * unmeasured.ratio}) for point in drafts.planned]
    assert off(scaled) > 2.5, "what scaling with the steps' costs would come to"


def test_drafts_whose_costs_grow_otherwise_than_planned_come_near() -> None:
    """The plan has them all cost the same."""
    runner = Stub(of_this_machine)
    drafts = drafts_of(Chain(runner, draft_here), 1.0)
    flat = [point.model_copy(update={"ms": 5.0}) for point in drafts.planned]
    found = calibrated(runner, table(of_another_machine), drafts=[replace(drafts, planned=flat)])
    assert off(found.draft_costs["mine"]) < 2.2 < 5 < off(flat)


def test_contexts_that_are_not_drafted_for_say_nothing() -> None:
    runner = Stub(of_this_machine)
    found = calibrated(
        runner, table(of_another_machine), drafts=[drafts_of(Chain(runner, draft_here, least=500), 4.0)]
    )
    assert off(found.draft_costs["mine"]) < 1.35
    nowhere = Chain(runner, draft_here, least=5000)
    found = calibrated(runner, table(of_another_machine), drafts=[drafts_of(nowhere, 4.0)])
    assert found.draft_ratios["mine"] == found.ratio and nowhere.asked


def test_drafts_that_there_is_no_room_for_are_not_run() -> None:
    runner = Stub(of_this_machine, num_blocks=4 * 20)
    chain = Chain(runner, draft_here)
    calibrated(
        runner, table(of_another_machine), slots=4, most=600, seconds=1000.0, drafts=[drafts_of(chain, 1.0)]
    )
    assert {batch for batch, _ in chain.asked} == {1, 2, 4}
    assert {context for _, context in chain.asked} == {32, 512}


@pytest.mark.parametrize(
    "drafter",
    [
        DraftModelDrafter(TableDrafter(), 4, least=NEVER),
        MedusaDrafter(TableHeads(4), Likeliest.chain(4, least=NEVER)),
        EagleDrafter("eagle", TableDrafter(), None, Likeliest.chain(4, least=NEVER), (-1,)),
    ],
    ids=lambda drafter: drafter.name,
)
def test_drafters_that_end_their_drafts_are_measured_to_the_end(drafter: Speculator) -> None:
    requests = MeasuredDrafts(TableRunner(), drafter, width=WIDTH, blocks=2, batch=2, context=10)
    requests.begin(read=9)
    with whole_drafts(drafter):
        assert requests.draft(4)[1] == 4
    assert requests.draft(4)[1] < 4
