"""A plan's tree at work, on a clock that only costs move: profiled wide, planned, cut in every step to what pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from engine.control.controller import Controller
from engine.policy import StaticPolicy
from engine.request import GenerationRequest
from planner.plan.profiles import Profile
from planner.profile.records import RecordingPolicy, StepRecord
from speculators.growth import Choices
from speculators.medusa.draft import MedusaDrafter
from tests.engine.driving import make_engine, run
from tests.engine.simulated import SLOTS, Cost, World, plan_of, planned_costs
from tests.engine.tables import TableHeads, TableRunner
from tests.planner.synthetic_trees import Path, medusa

LEVELS, RANKS = 3, 3
WIDE = [(*path, rank) for path in [(), (0,), (1,), (0, 0), (0, 1)] for rank in range(RANKS)]
CHAIN = [(0,) * level for level in range(1, LEVELS + 1)]


def cheap(context: float, decoding: int, rows: int) -> float:
    return 20 + 0.4 * rows


def steep(context: float, decoding: int, rows: int) -> float:
    return 5 + max(rows, 8)


def heads(paths: Sequence[Path]) -> MedusaDrafter:
    return MedusaDrafter(TableHeads(LEVELS), Choices(paths))


@cache
def profiled(cost: Cost) -> Profile:
    watched = RecordingPolicy(StaticPolicy([heads(WIDE)], adaptive=False))
    engine = make_engine(TableRunner(num_blocks=128, hidden_layers=(-1,)), policy=watched)
    requests = [GenerationRequest(tuple(range(seed, seed + 6)), 80) for seed in range(24)]
    drafts: list[StepRecord] = []
    for request in requests:
        kept = watched.drafts[engine.submit(request, lambda event: None)]
        while not engine.idle:
            engine.step()
        drafts += kept
    return replace(medusa(WIDE, drafts, planned_costs(cost)), name="heads")


@cache
def served(cost: Cost, concurrency: int) -> tuple[float, Controller, list[Path]]:
    plan = plan_of([profiled(cost)])
    choices = [tuple(path) for path in plan.deployments["heads"].speculation["choices"]]
    controller = Controller(plan, {"heads": [heads(choices)]}, SLOTS)
    world = World(cost, hidden_layers=(-1,))
    engine = world.engine(controller)
    world.serve(engine, concurrency, 100)
    return world.serve(engine, concurrency, 200), controller, choices


def static(cost: Cost, concurrency: int, paths: Sequence[Path]) -> float:
    world = World(cost, hidden_layers=(-1,))
    policy = StaticPolicy([heads(paths)], adaptive=False) if paths else None
    return world.serve(world.engine(policy), concurrency, 200)


@pytest.mark.parametrize("cost", [cheap, steep])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_it_is_as_fast_as_the_best_of_the_trees_that_are_fixed(cost: Cost, concurrency: int) -> None:
    found, _, choices = served(cost, concurrency)
    fixed = [(), CHAIN[:1], CHAIN, WIDE, choices[:6], choices]
    assert found >= 0.95 * max(static(cost, concurrency, paths) for paths in fixed)


def test_more_of_it_is_verified_where_rows_cost_less() -> None:
    plan = plan_of([profiled(steep)])
    trees = plan.deployments["heads"].trees
    assert trees is not None
    nodes = {}
    for concurrency in (1, 8):
        _, controller, _ = served(steep, concurrency)
        counts = controller.decisions.at(concurrency)
        nodes[concurrency] = counts.nodes["heads"] / sum(counts.steps.values()) / concurrency
    told = {size.batch: size.nodes for size in trees.sizes if size.context == 32}
    assert nodes[1] > 2 * nodes[8] and told[1] > 2 * told[8]
    assert nodes[1] == pytest.approx(told[1], abs=2)


def test_the_output_is_that_of_plain_decoding() -> None:
    requests = [GenerationRequest(tuple(range(seed, seed + 6)), 60) for seed in range(8)]
    plain = [each.tokens for each in run(make_engine(TableRunner(num_blocks=128)), requests)]
    plan = plan_of([profiled(cheap)])
    choices = [tuple(path) for path in plan.deployments["heads"].speculation["choices"]]
    controller = Controller(plan, {"heads": [heads(choices)]}, SLOTS)
    runner = TableRunner(num_blocks=128, hidden_layers=(-1,))
    engine = make_engine(runner, policy=controller)
    assert [each.tokens for each in run(engine, requests)] == plain
    assert engine.statistics.accepted_tokens > 0
