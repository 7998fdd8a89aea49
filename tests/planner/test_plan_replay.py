"""Replayed drafts: exactly the tokens of the record, by the rules of the engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.plan.replay import longest_draft, replay
from planner.profile.records import RequestRecord, StepRecord
from speculators.match import LONGEST, Repetition
from tests.planner.synthetic_profile import chain, records


def request(*drafts: StepRecord, undrafted: int = 0) -> RequestRecord:
    tokens = 1 + undrafted + sum(len(draft.path) + 1 for draft in drafts)
    return RequestRecord("1", "any", 0.0, tokens, 1 + undrafted + len(drafts), list(drafts))


def test_a_shorter_draft_takes_more_steps_through_what_was_accepted() -> None:
    """Of ten tokens five were accepted, and then the target's own came: with three, 4 tokens and then 2."""
    found = replay([request(chain(5, 10))], 3, adaptive=False)
    assert (found.tokens.tolist(), found.steps.tolist()) == ([6], [2])
    assert found.nodes.tolist() == [[0, 0, 0, 2]]


def test_at_full_length_it_is_the_record() -> None:
    found = replay([request(chain(5, 10), chain(0, 2), chain(10, 10), undrafted=3)], 10, adaptive=False)
    assert (found.tokens.tolist(), found.steps.tolist()) == ([6 + 1 + 11 + 3], [6])
    assert found.nodes[0].tolist() == [3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_what_the_last_step_accepted_counts_though_it_was_not_written_down() -> None:
    """The request ended with three tokens more than its records and a plain step tell."""
    record = request(chain(1, 8), undrafted=1)
    record.tokens += 3
    assert replay([record], 8, adaptive=False).tokens.tolist() == [2 + 1 + 3]
    assert replay([record], 8, adaptive=False).steps.tolist() == [2]
    assert replay([record], 1, adaptive=False).steps.tolist() == [1 + 2]


def test_without_drafts_every_token_takes_a_step() -> None:
    found = replay([request(chain(5, 10), undrafted=2)], 0, adaptive=False)
    assert (found.tokens.tolist(), found.steps.tolist(), found.asked.tolist()) == ([8], [8], [0])


def test_of_a_tree_the_first_nodes_are_drafted() -> None:
    """The accepted path went through nodes 1 and 4, so four nodes hold its first level alone."""
    tree = StepRecord(6, 2, (3, 2), (1, 0), (1, 4))
    assert replay([request(tree)], 5, adaptive=False).steps.tolist() == [1]
    assert replay([request(tree)], 4, adaptive=False).steps.tolist() == [2]
    assert replay([request(tree)], 1, adaptive=False).steps.tolist() == [3]


def test_lengths_that_follow_acceptance_are_the_engine_s() -> None:
    """3 at first; all accepted: doubled; nothing accepted: halved."""
    found = replay([request(chain(3, 15), chain(6, 15), chain(0, 15), chain(0, 15))], 15, adaptive=True)
    # 3 of 3, then the rest of that draft with 6; 6 of 6 ... by hand:
    assert found.tokens.tolist() == [4 + 7 + 1 + 1]
    assert found.asked[0] == 3 + 6 + 12 + 6


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), min_size=1, max_size=30),
    st.integers(0, 15),
    st.booleans(),
)
def test_a_replay_emits_what_was_recorded(pairs: list[tuple[int, int]], length: int, adaptive: bool) -> None:
    drafts = [chain(min(pair), max(pair)) for pair in pairs if max(pair)]
    found = replay([request(*drafts, undrafted=1)], length, adaptive=adaptive)
    assert found.tokens.tolist() == [1 + sum(len(draft.path) + 1 for draft in drafts)]
    assert found.steps.sum() == found.nodes.sum() >= 1 + len(drafts) - (length == 0) * 0
    assert (found.nodes @ range(found.most + 1)).sum() <= found.asked.sum()


def test_longer_drafts_never_take_more_steps() -> None:
    found = records(0.7)
    steps = [replay(found, length, adaptive=False).steps.sum() for length in range(longest_draft(found) + 1)]
    assert steps == sorted(steps, reverse=True)
    assert longest_draft(found) == 15


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ([], 0),
        ([1], 0),
        ([1, 1], 1),
        ([1, 2, 3, 9, 2, 3], 2),
        ([1, 2, 3, 9, 3], 1),
        (list(range(20)) * 2, LONGEST),
    ],
)
def test_the_match_is_the_longest_end_that_stood_there_before(text: list[int], match: int) -> None:
    found = Repetition(text)
    assert (found.match, found.length) == (match, len(text))
