"""What policies decide: who drafts, how deep, and what they learn; on requests that no engine runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.policy import Choice, Proposal, ScheduledPolicy, StaticPolicy
from engine.request import GenerationRequest
from engine.running import RunningRequest
from speculators.anpd import AnpdSpeculator
from speculators.lookup import ChainedLookup, SureLookup
from speculators.outcome import StepOutcome
from speculators.prompt_lookup import PromptLookupSpeculator
from speculators.tree import TokenTree
from tests.engine.driving import make_engine, run
from tests.engine.tables import TableRunner, following

REPEATED = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


class Unsure(PromptLookupSpeculator):
    """A drafter that ends its drafts by itself."""

    ends_drafts = True


def request_of(identity: int, *, decodes: bool = True, **more: int) -> RunningRequest:
    request = GenerationRequest((1, 2, 3), 100, **more)  # type: ignore[arg-type]
    item = RunningRequest.begin(identity, request, lambda event: None)
    item.cached = 2 if decodes else 0
    if decodes:
        item.cached, item.output = 3, [4]
    return item


def budgets(policy: StaticPolicy, *items: RunningRequest) -> list[list[int]]:
    return [[choice.budget for choice in choices] for choices in policy.assign(items)]


def learned(policy: StaticPolicy, item: RunningRequest, drafted: int, accepted: int, who: str) -> None:
    tree = TokenTree.chain([7] * drafted)
    outcome = StepOutcome([7] * accepted + [8], tree, tuple(range(accepted)))
    policy.learn(Proposal(item, who, tree), item, outcome)


def test_lengths_follow_what_was_accepted() -> None:
    policy, item = StaticPolicy([AnpdSpeculator(draft_length=12)]), request_of(1)
    assert policy.begin(item)
    assert budgets(policy, item) == [[3]]
    learned(policy, item, 3, 3, "anpd")
    assert budgets(policy, item) == [[6]]
    learned(policy, item, 6, 1, "anpd")
    assert budgets(policy, item) == [[2]]


@pytest.mark.parametrize("speculator", [Unsure(draft_length=12), AnpdSpeculator(draft_length=12)])
def test_lengths_stay_where_the_speculator_ends_its_drafts_or_nobody_wants_them_to_change(
    speculator: PromptLookupSpeculator | AnpdSpeculator,
) -> None:
    policy, item = StaticPolicy([speculator], adaptive=speculator.ends_drafts), request_of(1)
    policy.begin(item)
    learned(policy, item, 12, 0, speculator.name)
    assert budgets(policy, item) == [[12]]


def test_a_request_may_ask_for_less_and_for_nothing() -> None:
    policy = StaticPolicy([AnpdSpeculator(draft_length=12)], adaptive=False)
    less, nothing = request_of(1, draft_length=2), request_of(2, draft_length=0)
    assert (list(policy.begin(less)), list(policy.begin(nothing))) == (["anpd"], [])
    assert budgets(policy, less, nothing) == [[2], []]


def test_whoever_is_in_its_prompt_drafts_nothing_and_keeps_up() -> None:
    policy, item = StaticPolicy([AnpdSpeculator()]), request_of(1, decodes=False)
    policy.begin(item)
    assert policy.assign([item]) == [[Choice("anpd", 0)]]


def test_a_schedule_counts_those_that_decode() -> None:
    policy = ScheduledPolicy(
        [AnpdSpeculator(draft_length=6)], longest_draft={1: 6, 2: 1, 3: 0}.get, adaptive=False
    )
    items = [request_of(1), request_of(2), request_of(3, decodes=False)]
    for item in items:
        policy.begin(item)
    assert budgets(policy, *items[:1]) == [[6]]
    assert budgets(policy, *items) == [[1], [1], [0]]


def test_beside_a_drafter_that_ends_its_drafts_the_lookup_follows_what_was_accepted() -> None:
    policy, item = StaticPolicy([SureLookup(2, 12), Unsure(draft_length=12)]), request_of(1)
    policy.begin(item)
    assert budgets(policy, item) == [[3, 12]]
    learned(policy, item, 3, 3, "lookup")
    assert budgets(policy, item) == [[6, 12]]
    learned(policy, item, 12, 0, "prompt_lookup")
    assert budgets(policy, item) == [[6, 12]]


def test_beside_another_one_length_serves_both() -> None:
    policy, item = StaticPolicy([SureLookup(2, 12), AnpdSpeculator(draft_length=12)]), request_of(1)
    policy.begin(item)
    learned(policy, item, 3, 3, "anpd")
    assert budgets(policy, item) == [[6, 6]]
    learned(policy, item, 6, 0, "lookup")
    assert budgets(policy, item) == [[3, 3]]


def test_those_who_draft_in_turns_have_the_length_of_the_longest() -> None:
    policy, item = StaticPolicy([ChainedLookup(2, 12, -1.0), Unsure(draft_length=5)]), request_of(1)
    policy.begin(item)
    learned(policy, item, 3, 0, "lookup")
    assert policy.assign([item]) == [[Choice("lookup", 12, True), Choice("prompt_lookup", 12, True)]]
    shortened = StaticPolicy([ChainedLookup(2, 12, -1.0), AnpdSpeculator(draft_length=5)])
    shortened.begin(item)
    assert budgets(shortened, item) == [[3, 3]]
    learned(shortened, item, 3, 3, "anpd")
    assert budgets(shortened, item) == [[6, 6]]


def test_a_request_that_has_ended_is_forgotten() -> None:
    policy, item = StaticPolicy([AnpdSpeculator()]), request_of(1)
    policy.begin(item)
    policy.end(item)
    assert policy.assign([item]) == [()]


class Told(AnpdSpeculator):
    """Writes down when it was asked."""

    def __init__(self, name: str, sure: bool) -> None:
        super().__init__()
        self.name, self._sure, self.asked = name, sure, 0

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        self.asked += len(request_ids)
        return [TokenTree.chain((9,) if self._sure else ())] * len(request_ids)


def test_the_next_one_is_asked_only_where_the_first_has_nothing() -> None:
    for sure in (True, False):
        first, second = Told("first", sure), Told("second", True)
        run(make_engine(TableRunner(), [first, second]), [GenerationRequest((1, 2, 3), 6)])
        assert (first.asked > 0, second.asked > 0) == (True, not sure)


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different names.*\['anpd', 'anpd'\]"):
        make_engine(TableRunner(), [AnpdSpeculator(), AnpdSpeculator()])


class Pruned(StaticPolicy):
    """Verifies the first node alone."""

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        return [proposal.tree.truncate(1) for proposal in proposals]


def test_what_the_policy_leaves_out_is_neither_run_nor_counted() -> None:
    text = [5, 6]
    while len(text) < 40:
        text.append(following(*text[-2:]))
    request = GenerationRequest(tuple(text), 20)
    runner = TableRunner()
    engine = make_engine(runner, policy=Pruned([PromptLookupSpeculator(1, 5)], adaptive=False))
    outcome = run(engine, [request])[0]
    longest = max(len(item.tokens) for batch in runner.batches for item in batch if not item.is_prompt)
    assert longest == 2 and 0 < engine.statistics.drafted_tokens <= outcome.last.metrics.steps
    assert outcome.tokens == run(make_engine(TableRunner()), [request])[0].tokens
