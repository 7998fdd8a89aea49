"""The controller without a plan: costs measured at start, acceptance guessed, and both soon what they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest

from engine.control.beginning import (
    MeasuredBeginning,
    MeasuredDrafting,
    guessed_drafts,
    guessed_steps,
    guessed_survival,
)
from engine.control.calibration import Drafts, calibrate
from engine.control.controller import Controller
from engine.control.survival import SurvivalEstimate
from engine.control.table import CostTable
from engine.engine import Engine
from engine.plan import CostPoint
from engine.policy import StaticPolicy
from engine.request import GenerationRequest, SamplingParams
from engine.scheduler import EngineConfig
from speculators.anpd import AnpdSpeculator
from speculators.base import Requirements, Speculator
from speculators.lookup import SureLookup
from tests.engine.driving import make_engine, run
from tests.engine.simulated import LENGTH, SLOTS, Cost, Guesser, TimedRunner, World
from tests.engine.tables import TableRunner
from tests.engine.test_controller import fewer_threads, flat, repeated_text, roofline, steep

FIRST_STEPS = 250  # after which it is as good as it gets
CALL_MS, TOKEN_MS = 1.0, 2.0  # of a drafter that costs something


def begun(world: World, guesser: Guesser) -> Controller:
    """As `engine.deployment` does it, on the world's clock."""
    size = SLOTS, LENGTH, guesser.max_draft_length
    found = calibrate(
        TimedRunner(world),
        guessed_steps(*size),
        slots=SLOTS,
        most=LENGTH,
        drafts=[Drafts("mine", guessed_drafts(*size), guesser, 4)] if guesser.costs else [],
        clock=lambda: world.now / 1e3,
    )
    assert world.now < 10e3
    drafting = MeasuredDrafting(found.draft_costs.get("mine", ()))
    return Controller(MeasuredBeginning(found.costs, (), {"mine": drafting}), {"mine": [guesser]}, SLOTS)


def guesser_in(world: World, length: int, wrong: int, dear: bool) -> Guesser:
    costs = {"call_ms": CALL_MS, "token_ms": TOKEN_MS} if dear else {}
    return world.guesser(length, wrong=wrong, **costs)


def settled(cost: Cost, concurrency: int, wrong: int, dear: bool) -> float:
    """Tokens a millisecond of the controller in a steady load, once it has seen the first steps."""
    world = World(cost)
    controller = begun(world, guesser_in(world, 7 if dear else 15, wrong, dear))
    return settled_on(world, world.engine(controller), concurrency)


@cache
def static(cost: Cost, concurrency: int, wrong: int, dear: bool, length: int) -> float:
    """Likewise of a draft length."""
    world = World(cost)
    guesser = guesser_in(world, length, wrong, dear)
    policy = StaticPolicy([guesser], adaptive=False) if length else None
    return settled_on(world, world.engine(policy), concurrency)


def settled_on(world: World, engine: Engine, concurrency: int) -> float:
    world.serve(engine, concurrency, FIRST_STEPS)
    return world.serve(engine, concurrency, 300)


@pytest.mark.parametrize(
    ("cost", "concurrency", "wrong"),
    [
        (flat, 4, 0),
        (flat, 1, 32),
        (flat, 1, 64),
        (steep, 1, 32),
        (steep, 4, 0),
        (roofline, 2, 0),
        (roofline, 16, 0),
        (fewer_threads, 2, 16),
    ],
)
@pytest.mark.parametrize("dear", [False, True], ids=["lookup", "drafter"])
def test_after_its_first_steps_it_is_as_fast_as_the_best_length_and_as_none(
    cost: Cost, concurrency: int, wrong: int, dear: bool
) -> None:
    found = settled(cost, concurrency, wrong, dear)
    rates = {length: static(cost, concurrency, wrong, dear, length) for length in (0, 1, 3, 7)}
    assert found >= 0.95 * max(rates.values())  # of which none is one


def test_what_is_only_guessed_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SurvivalEstimate, "learn", lambda *_: None)
    assert settled(flat, 1, 64, dear=True) < 0.93 * static(flat, 1, 64, True, 0)


def test_a_drafter_of_which_nothing_is_known_is_tried_often_until_it_is_and_then_seldom() -> None:
    world = World(steep)
    guesser = guesser_in(world, 7, 64, dear=True)
    controller = begun(world, guesser)
    engine = world.engine(controller)
    way = controller.ways["mine"]
    before = guesser.calls
    assert way.unseen
    world.serve(engine, 4, FIRST_STEPS)
    assert 50 <= guesser.calls - before <= 100 and not way.unseen
    before = guesser.calls
    world.serve(engine, 4, 512)
    assert guesser.calls - before <= 512 / 128 * 2 + 2


def test_a_tree_s_later_nodes_are_not_given_up_before_they_are_tried() -> None:
    class Tree(Guesser):
        requirements = Requirements(max_branches=5)

    world = World(flat)
    chain, tree = world.guesser(6), Tree(world, 6, 0, 0.0, 0.0, "tree")
    by_chain, by_tree = (
        SurvivalEstimate(guessed_survival([each]), 6, guessed=True) for each in (chain, tree)
    )
    assert by_tree(3, 0.0, None, 6)[-1] > 0.07 > 0.02 > by_chain(3, 0.0, None, 6)[-1]
    for _ in range(100):
        by_tree.learn(3, 0.0, None, [True, *[False] * 5])
    assert by_tree(3, 0.0, None, 2) == pytest.approx([1, 0], abs=0.1)


@pytest.mark.parametrize(
    ("slots", "most", "longest"), [(1, 64, 1), (3, 300, 7), (16, 2048, 15), (64, 8192, 31)]
)
def test_guessed_costs_are_whole_tables_that_reach_to_the_largest_step(
    slots: int, most: int, longest: int
) -> None:
    def table(points: Sequence[CostPoint]) -> CostTable:
        rows = [{**point.model_dump(), "ms": [point.ms]} for point in points]
        return CostTable(rows, np.zeros((1, 1), np.int64))

    steps, drafts = table(guessed_steps(slots, most, longest)), table(guessed_drafts(slots, most, longest))
    assert max(steps.batches) == max(drafts.batches) == slots
    assert (max(steps.sizes), max(drafts.sizes)) == (1 + longest, longest)
    assert max(steps.contexts) + 1 + longest < most


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 6}])
@pytest.mark.parametrize("dear", [False, True])
def test_whatever_it_decides_the_output_is_that_of_plain_decoding(
    batch: int, sampling: dict[str, float], dear: bool
) -> None:
    requests = [
        GenerationRequest(repeated_text(number), 60, SamplingParams(seed=number, **sampling))  # type: ignore[arg-type]
        for number in range(batch)
    ]
    plain = [each.tokens for each in run(make_engine(TableRunner(num_blocks=128)), requests)]
    group: list[Speculator] = [SureLookup(2, 7), AnpdSpeculator(draft_length=7)]
    size = 16, 128, 7
    known = MeasuredBeginning(
        guessed_steps(*size), (), {"mine": MeasuredDrafting(guessed_drafts(*size) if dear else ())}
    )
    controller = Controller(known, {"mine": group}, EngineConfig().max_batch_size)
    assert (controller.ways["mine"].costs is not None) == dear
    engine = make_engine(TableRunner(num_blocks=128), policy=controller)
    assert [each.tokens for each in run(engine, requests)] == plain
    verified = engine.statistics.drafted_tokens if dear else engine.statistics.accepted_tokens
    assert verified > 0
