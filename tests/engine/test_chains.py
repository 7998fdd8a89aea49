"""Drafts that a lookup and a drafter make in turns: who goes on where, how long they are, and that outputs stay."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.attention_kernels import Attention, KernelName
from engine.control.controller import Controller
from engine.engine import Engine
from engine.openvino_graphs import OpenVinoBackend
from engine.plan import Plan
from engine.planned import named_apart
from engine.policy import StaticPolicy, StepCost
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from engine.scheduler import EngineConfig
from speculators.anpd import AnpdSpeculator
from speculators.base import Speculator
from speculators.draft_model.draft import DraftModelDrafter
from speculators.eagle.draft import EagleDrafter
from speculators.graphs import DrafterRows
from speculators.growth import Likeliest
from speculators.lookup import ChainedLookup
from speculators.medusa.draft import MedusaDrafter
from speculators.mlp_speculator.draft import MlpDrafter
from speculators.outcome import StepOutcome
from speculators.peagle.draft import PEagleDrafter
from speculators.tree import EMPTY, TokenTree
from tests.drafters import VARIANT, TinyDrafters, layers_of, planted_prompts
from tests.engine.driving import make_engine, run
from tests.engine.recording import CASES, Case, record, requests
from tests.engine.simulated import plan_of
from tests.engine.tables import (
    TableDrafter,
    TableHeads,
    TableRunner,
    following,
    fusion,
    masked_fusion,
    mlp_stage,
)
from tests.planner.synthetic_profile import profile, records
from tests.runners import openvino_runner
from tests.tiny import KERNELS, NUM_BLOCKS, THREADS

DEPTH, LONGEST = 4, 9
UNSURE = math.log(0.3)


def _eagle3(least: float) -> Speculator:
    return EagleDrafter("eagle3", TableDrafter(), fusion, Likeliest.chain(DEPTH, least), (2, 4, 5))


def _peagle(least: float) -> Speculator:
    return PEagleDrafter(
        TableDrafter(), masked_fusion, Likeliest.chain(DEPTH, least), (2, 4, 5), mask_token=3
    )


HEADS: dict[str, Callable[[float], Speculator]] = {
    "draft_model": lambda least: DraftModelDrafter(TableDrafter(), DEPTH, least),
    "eagle": lambda least: EagleDrafter("eagle", TableDrafter(), None, Likeliest.chain(DEPTH, least), (-1,)),
    "eagle3": _eagle3,
    "peagle": _peagle,
    "medusa": lambda least: MedusaDrafter(TableHeads(DEPTH), Likeliest.chain(DEPTH, least)),
    "mlp_speculator": lambda least: MlpDrafter([mlp_stage] * DEPTH, Likeliest.chain(DEPTH, least)),
}


def engine_of(
    head: Speculator,
    lookup: Speculator | None = None,
    runner: type[TableRunner] = TableRunner,
    **limits: Any,
) -> Engine:
    speculators = [head] if lookup is None else [lookup, head]
    return make_engine(runner(hidden_layers=head.requirements.hidden_layers), speculators, **limits)


def repetitive(seed: int, length: int = 40) -> tuple[int, ...]:
    text = [seed, seed + 1]
    while len(text) < length:
        text.append(following(*text[-2:]) if len(text) % 9 else seed)
    return tuple(text)


@pytest.mark.parametrize("least", [-math.inf, UNSURE], ids=["always", "unsure"])
@pytest.mark.parametrize("name", HEADS)
def test_outputs_are_those_of_plain_decoding_and_both_have_tokens_accepted(name: str, least: float) -> None:
    asked = [request for request in requests() if not request.draft]
    limits: dict[str, Any] = {"max_batch_size": 4, "adaptive_drafts": least > -math.inf}
    plain = [each.tokens for each in run(make_engine(TableRunner(), max_batch_size=4), asked)]
    alone = engine_of(HEADS[name](least), **limits)
    chained = engine_of(HEADS[name](least), ChainedLookup(2, LONGEST, min(least, math.log(0.1))), **limits)
    for engine in (alone, chained):
        assert [each.tokens for each in run(engine, asked)] == plain
    behind = [sum(engine.statistics.accepted_by_position[DEPTH:]) for engine in (alone, chained)]
    assert behind[0] == 0 < behind[1]
    if least > -math.inf:
        assert chained.statistics.accepted_tokens > alone.statistics.accepted_tokens


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.8, "top_k": 6}])
@pytest.mark.parametrize("batch", [1, 6])
def test_sampled_or_not_alone_or_with_others(batch: int, sampling: dict[str, Any]) -> None:
    asked = [
        GenerationRequest(repetitive(number), 50, SamplingParams(seed=number, **sampling))
        for number in range(6)
    ]
    plain = [each.tokens for each in run(make_engine(TableRunner(), max_batch_size=6), asked)]
    engine = engine_of(_eagle3(UNSURE), ChainedLookup(2, LONGEST, UNSURE), max_batch_size=batch)
    assert [each.tokens for each in run(engine, asked)] == plain
    assert engine.statistics.accepted_tokens > 0


class _Forgetful(TableRunner):
    """Loses the rows of drafted tokens behind the fourth."""

    def _write(self, item: SequenceInput, row: int, place: int) -> None:
        if item.is_prompt or place <= DEPTH:
            super()._write(item, row, place)


def test_control_rows_behind_the_drafters_own_that_are_lost_change_the_output() -> None:
    asked = [*requests()]
    plain = [each.tokens for each in run(make_engine(TableRunner(), max_batch_size=4), asked)]
    limits: dict[str, Any] = {"max_batch_size": 4, "adaptive_drafts": False}
    alone = engine_of(HEADS["draft_model"](-math.inf), runner=_Forgetful, **limits)
    chained = engine_of(
        HEADS["draft_model"](-math.inf), ChainedLookup(2, LONGEST), runner=_Forgetful, **limits
    )
    own = [request for request in asked if not request.draft and not request.continued]
    expected = [plain[asked.index(request)] for request in own]
    assert [each.tokens for each in run(alone, own)] == expected, "no draft of its own is that long"
    assert [each.tokens for each in run(chained, own)] != expected


@pytest.mark.parametrize("name", ["eagle3, unsure", "eagle3, unsure, alone", "draft model, unsure"])
def test_with_a_lookup_that_finds_nothing_it_is_the_drafter_alone(name: str) -> None:
    """Token by token, the drafter says what it says at once."""
    case = CASES[name]

    def both() -> Sequence[Speculator]:
        head = case.speculators()
        assert isinstance(head, Speculator)
        return [ChainedLookup(500, 3, UNSURE), head]

    assert record(Case(both, case.batch, case.limits)) == record(case)


class Scripted(Speculator):
    """Adds what it is told to behind drafts, by their number of tokens, each only once in a row."""

    ends_drafts = True
    in_turns = True

    def __init__(self, name: str, adds: dict[int, Sequence[int]], most: int, log: list[Any]) -> None:
        self.name, self.max_draft_length = name, most
        self._adds, self._log = adds, log

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        pass

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        raise AssertionError("drafts are made in turns")

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        self._log.append((self.name, [draft.tokens for draft in drafts], list(budgets)))
        return [
            TokenTree.chain(added, scores=[-0.5 * (place + 1) for place in range(len(added))])
            if (added := [*self._adds.get(len(draft), ())][:budget])
            else EMPTY
            for draft, budget in zip(drafts, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        pass

    def finish(self, request_id: int) -> None:
        pass


class Watched(StaticPolicy):
    """Keeps what was proposed, and what drafts cost."""

    def __init__(self, speculators: Sequence[Speculator]) -> None:
        super().__init__(speculators)
        self.trees: list[TokenTree] = []
        self.costs: list[StepCost] = []

    def select(self, proposals: Any) -> list[TokenTree]:
        self.trees += [each.tree for each in proposals]
        return super().select(proposals)

    def ran(self, cost: StepCost) -> None:
        self.costs.append(cost)


def test_each_goes_on_where_the_other_ends_until_none_does() -> None:
    log: list[Any] = []
    first = Scripted("first", {1: (11, 12), 5: (15,)}, 8, log)
    second = Scripted("second", {0: (10,), 3: (13,), 4: (14,)}, 4, log)
    policy = Watched([first, second])
    engine = make_engine(TableRunner(), policy=policy)
    run(engine, [GenerationRequest((1, 2, 3), 12)])
    (tree, *_) = policy.trees
    assert tree.tokens == (10, 11, 12, 13, 14, 15)
    assert tree.scores == (-0.5, -1.0, -1.5, -2.0, -2.5, -3.0), "log-probabilities of whole paths"
    turns = [(name, len(drafts[0]), budgets[0]) for name, drafts, budgets in log[:10]]
    assert turns == [
        ("first", 0, 8),
        ("second", 0, 8),
        ("first", 1, 7),
        ("second", 3, 5),
        ("first", 4, 4),
        ("second", 4, 4),
        ("first", 5, 3),
        ("second", 6, 2),
        ("first", 6, 2),
        *turns[9:],
    ]


def test_a_draft_is_as_long_as_the_longest_of_them_may_draft_and_as_the_request_has_room() -> None:
    log: list[Any] = []
    endless: dict[int, Sequence[int]] = {size: (20 + size,) for size in range(30)}
    pair = [Scripted("a", endless, 7, log), Scripted("b", endless, 3, log)]
    policy = Watched(pair)
    run(make_engine(TableRunner(), policy=policy), [GenerationRequest((1, 2, 3), 12)])
    assert len(policy.trees[0]) == 7
    assert [len(tree) for tree in policy.trees[-3:]] != [7, 7, 7], "the last ones have less room"
    asked = [each for each in policy.costs if each.drafts]
    assert {name: (cost.requests, cost.budget) for name, cost in asked[1].drafts.items()} == {
        "a": (1, 7),
        "b": (1, 7),
    }


def test_a_request_that_asks_for_less_gets_less() -> None:
    endless: dict[int, Sequence[int]] = {size: (20 + size,) for size in range(30)}
    policy = Watched([Scripted("a", endless, 7, []), Scripted("b", endless, 3, [])])
    run(make_engine(TableRunner(), policy=policy), [GenerationRequest((1, 2, 3), 12, draft_length=2)])
    assert max(map(len, policy.trees)) == 2


class Overlong(Scripted):
    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        return [TokenTree.chain([5] * (budget + 1)) for budget in budgets]


def test_one_who_adds_more_than_there_is_room_for_is_refused() -> None:
    engine = make_engine(TableRunner(), Overlong("over", {}, 4, []))
    engine.submit(GenerationRequest((1, 2, 3), 9), lambda event: None)
    with pytest.raises(ValueError, match=r"speculator over proposed .* at most 4 nodes"):
        while engine.step():
            pass


def started(head: Speculator, prompt: Sequence[int]) -> Speculator:
    """With its prompt read and one token emitted."""
    head.start(1, prompt, DrafterRows(range(8)))
    rows: NDArray[np.float32] = np.zeros((len(prompt), 4), np.float32)
    rows[:, 0] = prompt
    rows[1:, 1] = prompt[:-1]
    hidden = dict.fromkeys(head.requirements.hidden_layers, rows)
    head.observe(1, StepOutcome([9], kept=range(len(prompt)), hidden=hidden))
    while any(head.catch_up([1], 100)):
        pass
    return head


@pytest.mark.parametrize("name", HEADS)
def test_what_it_says_does_not_depend_on_who_drafted_what_it_has_read(name: str) -> None:
    """Asked token by token, asked behind a chain that is there, or for a whole draft: the same tokens and scores."""
    prompt = repetitive(3, 20)
    (whole,) = started(HEADS[name](-math.inf), prompt).propose([1], [DEPTH])
    stepwise, chain = started(HEADS[name](-math.inf), prompt), EMPTY
    while len(more := stepwise.extend([1], [chain], [9])[0]):
        assert len(more) == 1
        chain = chain.extended(more)
    assert chain.tokens == whole.tokens
    assert whole.scores is not None and chain.scores == pytest.approx(whole.scores)
    for known in range(1, DEPTH):
        begun = TokenTree.chain(whole.tokens[:known], scores=whole.scores[:known])
        (next_one,) = started(HEADS[name](-math.inf), prompt).extend([1], [begun], [9])
        assert next_one.tokens == whole.tokens[known : known + 1]


@pytest.mark.parametrize(
    ("name", "matters"),
    [("draft_model", True), ("eagle3", True), ("mlp_speculator", True), ("medusa", False), ("peagle", False)],
)
def test_all_but_heads_and_blocks_see_what_was_looked_up(name: str, matters: bool) -> None:
    found = set()
    for token in range(12):
        head = started(HEADS[name](-math.inf), repetitive(3, 20))
        (more,) = head.extend([1], [TokenTree.chain([token, token + 1], scores=[0.0, 0.0])], [9])
        found.add(more.tokens)
    assert (len(found) > 4) == matters and (len(found) == 1) != matters


def calls_behind(network: TableDrafter, head: Speculator, tokens: int, score: float) -> tuple[int, int]:
    """How many tokens are added behind `tokens` that were looked up, and the calls that it took."""
    started(head, repetitive(3, 20))
    network.calls.clear()
    looked_up = TokenTree.chain(range(tokens), scores=[score] * tokens)
    return len(head.extend([1], [looked_up], [9])[0]), len(network.calls)


def test_a_draft_model_reads_what_was_looked_up_in_one_call_an_eagle_drafter_a_token_in_each() -> None:
    shape = Likeliest.chain(8, UNSURE)
    for tokens, likely, eagles in ((0, 0.9, 1), (1, 0.9, 2), (2, 0.95, 3), (2, 0.8, 0), (3, 1.0, 0)):
        score = math.log(likely)
        network = TableDrafter()
        assert calls_behind(network, DraftModelDrafter(network, 8, UNSURE), tokens, score) == (1, 1)
        network = TableDrafter()
        eagle = EagleDrafter("eagle3", network, fusion, shape, (2, 4, 5))
        assert calls_behind(network, eagle, tokens, score) == (int(eagles > 0), eagles), (tokens, likely)


def test_none_goes_on_with_what_is_unlikely_or_as_long_as_it_drafts() -> None:
    for head in HEADS.values():
        drafter = started(head(UNSURE), repetitive(3, 20))
        unlikely = TokenTree.chain([4], scores=[math.log(0.2)])
        long = TokenTree.chain([4] * DEPTH, scores=[0.0] * DEPTH)
        assert drafter.extend([1], [unlikely], [9]) == drafter.extend([1], [long], [9]) == [EMPTY]


@cache
def _planned(ways: tuple[str, ...]) -> Plan:
    return plan_of(
        [
            profile(
                records(rate, drafted=9), lambda *size: 20 + size[1] * size[2] / 10, lambda *_: 2.0, name=name
            )
            for rate, name in zip((0.2, 0.7), ways, strict=True)
        ]
    )


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize("batch", [1, 8])
def test_under_a_plan_the_output_is_that_of_plain_decoding(batch: int, sampling: dict[str, Any]) -> None:
    asked = [
        GenerationRequest(repetitive(number), 60, SamplingParams(seed=number, **sampling))
        for number in range(batch)
    ]
    plain = [each.tokens for each in run(make_engine(TableRunner(num_blocks=128)), asked)]
    ways: dict[str, list[Speculator]] = {
        "anpd": [AnpdSpeculator()],
        "turns": [
            ChainedLookup(2, LONGEST, math.log(0.1)),
            DraftModelDrafter(TableDrafter(num_blocks=128), DEPTH, UNSURE),
        ],
    }
    controller = Controller(_planned(tuple(ways)), named_apart(ways), EngineConfig().max_batch_size)
    engine = make_engine(TableRunner(num_blocks=128), policy=controller)
    assert [each.tokens for each in run(engine, asked)] == plain
    nodes = [counts.nodes["turns"] for counts in controller.decisions.levels.values()]
    assert sum(nodes) > 0 < engine.statistics.accepted_tokens


@pytest.mark.torch
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["eagle3, in turns", "draft_model, in turns"])
def test_on_both_attention_kernels_real_graphs_give_the_targets_own_output(
    name: str, kernel: KernelName, tiny_drafters: TinyDrafters
) -> None:
    attention = Attention(kernel)
    speculators = tiny_drafters.speculators(
        name, "int8", planted=True, slots=4, backend=OpenVinoBackend(THREADS, attention)
    )
    runner = openvino_runner(
        tiny_drafters.targets.engine(VARIANT, "int8"),
        num_blocks=NUM_BLOCKS,
        threads=THREADS,
        hidden_layers=layers_of(speculators),
        attention=attention,
    )
    asked = [
        GenerationRequest(prompt, 50, SamplingParams(0.7 * (number % 2), seed=number))
        for number, prompt in enumerate(planted_prompts()[:6])
    ]
    plain = [each.tokens for each in run(make_engine(runner, max_batch_size=4), asked)]
    for batch in (1, 4):
        engine = make_engine(runner, speculators, max_batch_size=batch)
        assert [each.tokens for each in run(engine, asked)] == plain
        assert engine.statistics.accepted_tokens > 0
        assert sum(engine.statistics.drafted_by_position[3:]) > 0, "the lookup goes on behind the drafter"
