"""The controller on exact costs: not slower than off or a static choice, and soon right where costs are wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import pytest

from engine.control.controller import Controller
from engine.policy import DraftPolicy, Proposal, StaticPolicy
from engine.request import GenerationRequest, SamplingParams
from engine.scheduler import EngineConfig
from speculators.anpd import AnpdSpeculator
from speculators.prompt_lookup import PromptLookupSpeculator
from speculators.tree import EMPTY, TokenTree
from tests.engine.driving import make_engine, run
from tests.engine.simulated import Cost, Guesser, World, controlled, plan_of
from tests.engine.tables import VOCABULARY, TableRunner, following, mixed
from tests.planner.synthetic_profile import profile, records

ACCEPTED = 0.76  # of the tokens of a guesser that is never wrong on purpose


def flat(context: float, decoding: int, rows: int) -> float:
    return 20 + 0.2 * rows


def steep(context: float, decoding: int, rows: int) -> float:
    return 5 + 1.2 * rows


def roofline(context: float, decoding: int, rows: int) -> float:
    return max(20, 2 * rows)


def fewer_threads(context: float, decoding: int, rows: int) -> float:
    return 20 + rows


@cache
def times(cost: Cost, factor: float) -> Cost:
    return lambda context, decoding, rows: factor * cost(context, decoding, rows)


def rate_of(wrong: int) -> float:
    return ACCEPTED * (1 - wrong / 64)


def static(world: World, length: int, wrong: int) -> DraftPolicy | None:
    return StaticPolicy([world.guesser(length, wrong=wrong)], adaptive=False) if length else None


@cache
def best_static(cost: Cost, concurrency: int, wrong: int, steps: int = 160) -> float:
    """Tokens a millisecond of the best length, none included, in a steady load."""
    rates = []
    for length in (0, 1, 3, 7):
        world = World(cost)
        rates.append(world.serve(world.engine(static(world, length, wrong)), concurrency, steps))
    return max(rates)


def controlled_world(truth: Cost, table: Cost, wrong: int = 0) -> tuple[World, Controller]:
    world = World(truth)
    return world, controlled(world, table, [world.guesser(15, wrong=wrong)], [rate_of(wrong)])


@pytest.mark.parametrize(
    ("cost", "concurrency", "wrong"),
    [
        (flat, 4, 0),
        (flat, 1, 56),
        (flat, 8, 56),
        (steep, 1, 32),
        (steep, 8, 0),
        (roofline, 2, 16),
        (roofline, 16, 0),
    ],
)
def test_in_a_steady_load_it_is_as_fast_as_the_best_length_and_as_none(
    cost: Cost, concurrency: int, wrong: int
) -> None:
    world, controller = controlled_world(cost, cost, wrong)
    found = world.serve(world.engine(controller), concurrency, 220)
    assert found >= 0.96 * best_static(cost, concurrency, wrong)
    plain = World(cost)
    assert found >= 0.98 * plain.serve(plain.engine(), concurrency, 100)


def test_in_a_load_that_changes_it_beats_every_length() -> None:
    def served(policy: Callable[[World], DraftPolicy | None]) -> float:
        world = World(roofline)
        engine = world.engine(policy(world))
        for concurrency in (1, 16, 2, 12, 1):
            world.serve(engine, concurrency, 80)
        return world.emitted / world.now

    lengths = {length: served(lambda world: static(world, length, 8)) for length in (0, 1, 3, 7)}  # noqa: B023
    found = served(lambda world: controlled(world, roofline, [world.guesser(15, wrong=8)], [rate_of(8)]))
    assert found > 1.03 * max(lengths.values())


@pytest.mark.parametrize(
    "table", [times(flat, 0.5), times(flat, 2.0), steep], ids=["half", "double", "other"]
)
@pytest.mark.parametrize("concurrency", [1, 6])
def test_a_wrong_table_is_corrected(table: Cost, concurrency: int) -> None:
    world, controller = controlled_world(flat, table)
    engine = world.engine(controller)
    world.serve(engine, concurrency, 120)
    assert world.serve(engine, concurrency, 160) >= 0.9 * best_static(flat, concurrency, 0)
    costs = controller.costs.milliseconds(40, concurrency, 2 * concurrency)
    assert costs[0] == pytest.approx(flat(40, concurrency, concurrency), rel=0.25)


@pytest.mark.parametrize("concurrency", [1, 6])
@pytest.mark.parametrize("after", [times(flat, 2), fewer_threads], ids=["twice", "another shape"])
def test_threads_that_are_taken_away_in_the_middle_are_noticed_within_200_steps(
    after: Cost, concurrency: int
) -> None:
    world, controller = controlled_world(flat, flat)
    engine = world.engine(controller)
    world.serve(engine, concurrency, 80)
    world.cost = after
    world.serve(engine, concurrency, 200)
    assert world.serve(engine, concurrency, 160) >= 0.93 * best_static(after, concurrency, 0)


def test_prompts_that_are_read_are_no_batch() -> None:
    world = World(roofline, read_ms=30.0)
    controller = controlled(world, roofline, [world.guesser(9)], [ACCEPTED])
    world.serve(world.engine(controller), 2, 300, max_tokens=12)
    counts = controller.decisions.at(1)
    assert controller.decisions.at(4).steps == {"none": 0, "mine": 0}
    assert counts.nodes["mine"] > 2 * sum(counts.steps.values())


def test_what_brings_nothing_more_is_left_out() -> None:
    world, controller = controlled_world(flat, flat, wrong=64)
    world.serve(world.engine(controller), 2, 300)
    counts = controller.decisions.at(2)
    assert counts.nodes["mine"] < 0.1 * sum(counts.steps.values())


@pytest.mark.parametrize("asking_ms", [0.0, 1.0])
def test_where_nothing_pays_hardly_anybody_is_asked_until_it_does(asking_ms: float) -> None:
    world = World(flat)
    asked: list[int] = []
    guesser = world.guesser(9, wrong=64, call_ms=asking_ms)
    propose = guesser.propose
    guesser.propose = lambda ids, budgets: asked.append(len(ids)) or propose(ids, budgets)  # type: ignore[assignment, func-returns-value]
    engine = world.engine(controlled(world, flat, [guesser], [rate_of(48)]))
    world.serve(engine, 8, 300)
    asked.clear()
    world.serve(engine, 8, 160)
    assert 160 // 24 <= len(asked) <= 25 and max(asked) <= 4
    guesser._wrong = 0
    world.serve(engine, 8, 300)
    asked.clear()
    found = world.serve(engine, 8, 100)
    assert len(asked) > 90
    assert found >= 0.9 * best_static(flat, 8, 0)


@pytest.mark.parametrize("asking_ms", [0.0, 6.0])
def test_asking_takes_time_too(asking_ms: float) -> None:
    """A lookup that is said to cost nothing."""
    world = World(flat)
    guesser = world.guesser(9, wrong=54, call_ms=asking_ms)
    engine = world.engine(controlled(world, flat, [guesser], [rate_of(54)]))
    world.serve(engine, 4, 150)
    found, before = world.serve(engine, 4, 200), guesser.calls
    plain = World(flat)
    without = plain.engine()
    plain.serve(without, 4, 150)
    off = plain.serve(without, 4, 200)
    world.serve(engine, 4, 100)
    if asking_ms:
        assert found >= 0.97 * off and guesser.calls - before <= 5
    else:
        assert found >= 1.05 * off and guesser.calls - before > 90


def test_a_request_that_asks_for_less_gets_less_and_one_that_asks_for_none_none() -> None:
    for asked in (0, 2):
        world, controller = controlled_world(flat, flat)
        engine = world.engine(controller)
        world.serve(engine, 1, 100, draft_length=asked)
        assert (engine.statistics.drafted_tokens > 0) == bool(asked)
        assert not any(engine.statistics.drafted_by_position[asked:])


def dear_world(cost: Cost, wrong: int) -> tuple[World, Controller, Guesser]:
    """With a drafter that takes 4 ms and 2 for each token."""
    world = World(cost)
    guesser = world.guesser(6, wrong=wrong, call_ms=4.0, token_ms=2.0)
    controller = controlled(
        world, cost, [guesser], [rate_of(wrong)], lambda context, batch, nodes: 4.0 + 2.0 * nodes
    )
    return world, controller, guesser


@pytest.mark.parametrize(("concurrency", "wrong"), [(1, 0), (6, 0), (1, 60)])
def test_a_drafter_that_costs_something_is_used_where_it_pays(concurrency: int, wrong: int) -> None:
    rates = []
    for length in (0, 1, 3, 6):
        world = World(flat)
        guesser = world.guesser(length, wrong=wrong, call_ms=4.0, token_ms=2.0) if length else None
        engine = world.engine(StaticPolicy([guesser], adaptive=False) if guesser else None)
        rates.append(world.serve(engine, concurrency, 120))
    world, controller, _ = dear_world(flat, wrong)
    assert world.serve(world.engine(controller), concurrency, 200) >= 0.95 * max(rates)


def test_a_drafter_that_is_off_is_hardly_ever_asked_and_comes_back() -> None:
    world, controller, guesser = dear_world(steep, 40)
    engine = world.engine(controller)
    world.serve(engine, 8, 100)
    before = guesser.calls
    world.serve(engine, 8, 400)
    assert guesser.calls - before <= 400 / 128 * 2 + 2
    guesser._wrong, world.cost = 0, flat
    world.serve(engine, 1, 300)
    before = guesser.calls
    world.serve(engine, 1, 50)
    assert guesser.calls - before > 30


def test_a_drafter_that_is_off_reads_few_prompts_along_and_comes_back_for_all() -> None:
    world, controller, guesser = dear_world(roofline, 24)
    engine = world.engine(controller)

    def begun(concurrency: int, steps: int) -> tuple[int, int]:
        """Requests that came, and those of them that the drafter was told of."""
        came, told = world.requests, guesser.begun
        world.serve(engine, concurrency, steps, max_tokens=16)
        return world.requests - came, guesser.begun - told

    begun(16, 300)
    came, told = begun(16, 400)
    assert came > 300 and 1 <= told <= 400 / 128 + 1, "sixteen leave no room for drafts"
    begun(1, 50)
    came, told = begun(1, 100)
    assert came == told >= 10


def test_a_request_keeps_the_drafter_that_it_began_with() -> None:
    world, controller, guesser = dear_world(flat, 0)
    engine = world.engine(controller)
    world.serve(engine, 4, 10, max_tokens=110)
    world.cost = steep
    world.serve(engine, 4, 8, max_tokens=110)
    controller.ways["mine"].idle = 1000
    world.cost = flat
    before = guesser.calls
    world.serve(engine, 4, 6, max_tokens=110)
    assert guesser.calls > before and guesser.begun == 4


def test_lookups_and_drafters_are_chosen_by_what_they_are_worth() -> None:
    def pair(world: World) -> tuple[Guesser, Guesser]:
        poor = world.guesser(9, wrong=48, name="lookup")
        return poor, world.guesser(6, call_ms=3.0, token_ms=0.5, name="drafter")

    def draft_cost(context: int, batch: int, nodes: int) -> float:
        return 3.0 + 0.5 * nodes

    world = World(flat)
    both = pair(world)
    plan = plan_of(
        [
            profile(records(rate_of(48), drafted=9), lambda c, b, s: flat(c, b, b * s), name="lookup"),
            profile(
                records(ACCEPTED, drafted=6), lambda c, b, s: flat(c, b, b * s), draft_cost, name="drafter"
            ),
        ]
    )
    controller = Controller(plan, {each.name: [each] for each in both}, 16)
    world.serve(world.engine(controller), 2, 200)
    steps = controller.decisions.at(2).steps
    assert steps["drafter"] > 0.8 * sum(steps.values())


def test_the_books_tell_what_was_expected_and_what_came() -> None:
    world, controller = controlled_world(times(flat, 3), flat, wrong=16)
    world.serve(world.engine(controller), 4, 300)
    counts = controller.decisions.at(4)
    assert counts.expected_tokens == pytest.approx(counts.emitted_tokens, rel=0.1)
    assert counts.measured_ms == pytest.approx(3 * counts.planned_ms, rel=0.01)
    assert counts.expected_ms == pytest.approx(counts.measured_ms, rel=0.1)


def repeated_text(seed: int) -> tuple[int, ...]:
    text = [seed, seed + 1]
    while len(text) < 30:
        text.append(following(*text[-2:]))
    return tuple(text)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 6}])
def test_whatever_it_decides_the_output_is_that_of_plain_decoding(
    batch: int, sampling: dict[str, float]
) -> None:
    requests = [
        GenerationRequest(repeated_text(number), 60, SamplingParams(seed=number, **sampling))  # type: ignore[arg-type]
        for number in range(batch)
    ]
    plain = [each.tokens for each in run(make_engine(TableRunner(num_blocks=128)), requests)]
    lookups = {"a": AnpdSpeculator(draft_length=7), "b": PromptLookupSpeculator(2, 5)}
    plan = plan_of(
        [
            profile(records(rate, drafted=each.max_draft_length), lambda c, b, s: 20 + 0.1 * b * s, name=name)
            for rate, (name, each) in zip((0.5, 0.7), lookups.items(), strict=True)
        ]
    )
    controller = Controller(
        plan, {name: [each] for name, each in lookups.items()}, EngineConfig().max_batch_size
    )
    engine = make_engine(TableRunner(num_blocks=128), policy=controller)
    found = [each.tokens for each in run(engine, requests)]
    assert found == plain
    assert engine.statistics.accepted_tokens > 0


class _Turn(Guesser):
    """Drafts in turns: one of two which know what mostly follows, the first tokens or those behind.

    What it drafts behind, it knows to be wrong every other time.
    """

    in_turns = True

    def __init__(self, world: World, name: str, tokens: range, token_ms: float) -> None:
        super().__init__(world, tokens.stop, 0, 0.0, token_ms, name)
        self._tokens = tokens

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        return [self._more(*each) for each in zip(request_ids, drafts, budgets, strict=True)]

    def _more(self, request_id: int, draft: TokenTree, budget: int) -> TokenTree:
        text, known = [*self._texts[request_id], *draft.tokens], len(self._texts[request_id])
        if len(draft) not in self._tokens:
            return EMPTY
        self._world.now += self._token_ms
        knows = not self._tokens.start or mixed(*text[:known]) % 2
        tokens: list[int] = []
        while len(tokens) < min(budget, self._tokens.stop - len(draft)):
            tokens.append((following(*[*text, *tokens][-2:]) + (0 if knows else 1)) % VOCABULARY)
        likely = math.log(ACCEPTED if knows else 0.03)
        return TokenTree.chain(tokens, scores=[likely * (place + 1) for place in range(len(tokens))])


class _Watched(Controller):
    """Keeps how much was verified of drafts that were likely to their end, and of others."""

    kept: dict[bool, list[int]]

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        found = super().select(proposals)
        for proposal, tree in zip(proposals, found, strict=True):
            if len(proposal.tree) > 4 and proposal.tree.scores is not None:
                self.kept[proposal.tree.scores[4] > -3].append(len(tree))
        return found


def test_nodes_of_a_draft_made_in_turns_are_verified_by_what_they_are_worth_whoever_drafted_them() -> None:
    world = World(fewer_threads)
    pair = [_Turn(world, "lookup", range(2, 8), 0.0), _Turn(world, "head", range(2), 0.4)]
    plan = plan_of(
        [
            profile(
                records(0.6, drafted=8),
                lambda context, batch, size: fewer_threads(context, batch, batch * size),
                lambda context, batch, nodes: 0.4 * min(nodes, 2),
            )
        ]
    )
    controller = _Watched(plan, {"mine": pair}, 16)
    controller.kept = {True: [], False: []}
    engine = world.engine(controller)
    world.serve(engine, 2, 300)
    for found in controller.kept.values():
        found.clear()
    world.serve(engine, 2, 200)
    assert min(map(len, controller.kept.values())) > 50
    likely, unlikely = (sum(found) / len(found) for found in controller.kept.values())
    assert likely > 3 and unlikely < 2.2
