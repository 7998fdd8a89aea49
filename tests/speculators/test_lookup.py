"""Lookups that draft only where they are sure, alone and in turns with a drafter."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.anpd import NgramTable
from speculators.lookup import ChainedLookup, SureLookup
from speculators.outcome import StepOutcome
from speculators.tree import EMPTY, TokenTree

REPEATED = [4, 9, 9, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


@pytest.mark.parametrize(("threshold", "tokens"), [(3, (5, 6, 7, 1)), (4, (5, 6, 7, 1)), (5, ())])
def test_the_threshold_is_the_shortest_match(threshold: int, tokens: tuple[int, ...]) -> None:
    lookup = SureLookup(threshold, 4)
    lookup.start(0, REPEATED)
    assert lookup.propose([0], [4])[0].tokens == tokens


def test_it_follows_what_is_emitted() -> None:
    lookup = SureLookup(2, 4)
    lookup.start(0, [1, 2, 3])
    lookup.observe(0, StepOutcome([1, 2]))
    assert lookup.propose([0], [1])[0].tokens == (3,)
    lookup.observe(0, StepOutcome([9, 1]))
    assert lookup.propose([0], [1])[0].tokens == (), "nothing follows (9, 1) yet"


def test_a_request_ends() -> None:
    lookup = SureLookup(2, 4)
    lookup.start(0, [1, 2])
    lookup.finish(0)
    with pytest.raises(KeyError, match="request 0 is not running"):
        lookup.propose([0], [1])


def after(tokens: Sequence[int], *likely: float) -> TokenTree:
    """A draft of another one."""
    return TokenTree.chain(
        tokens, scores=[sum(map(math.log, likely[: place + 1])) for place in range(len(tokens))]
    )


def begun(
    text: Sequence[int], threshold: int = 2, length: int = 6, least: float = -math.inf
) -> ChainedLookup:
    lookup = ChainedLookup(threshold, length, least)
    lookup.start(0, text)
    return lookup


def test_it_goes_on_with_what_a_drafter_has_drafted() -> None:
    lookup = begun([7, 8, 1, 2, 3, 4, 5, 9])
    assert lookup.extend([0], [EMPTY], [6]) == [EMPTY]
    assert lookup.extend([0], [after([1], 0.9)], [3])[0].tokens == (), "one token is no match of two"
    assert lookup.extend([0], [after([1, 2], 0.9, 0.9)], [3])[0].tokens == (3, 4, 5)
    assert lookup.extend([0], [after([1, 2], 0.9, 0.9)], [1])[0].tokens == (3,)


def test_a_whole_draft_has_no_more_than_its_length() -> None:
    lookup = begun([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], length=4)
    assert len(lookup.extend([0], [EMPTY], [9])[0]) == 4
    assert lookup.extend([0], [after([1, 2, 3], 1, 1, 1)], [9])[0].tokens == (4,)


def test_where_a_text_has_gone_on_in_several_ways_the_drafter_is_asked() -> None:
    text = [1, 2, 3, 4, 5, 0, 1, 2, 3, 6, 7, 0, 1, 2, 3, 8, 9, 1, 2]
    lookup = begun(text)
    assert lookup.propose([0], [6])[0].tokens == (3,), "4, 6 or 8 comes next"
    assert lookup.extend([0], [after([3, 6], 0.9, 0.9)], [2])[0].tokens == (7, 0)


def test_scores_are_those_of_its_own_nodes_and_a_draft_ends_where_it_is_unlikely() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]
    free = begun(text).extend([0], [after([3], 0.4)], [5])[0]
    assert free.tokens == (4, 5, 6, 7, 8) and free.scores is not None
    assert list(free.scores) == sorted(free.scores, reverse=True) and free.scores[0] > math.log(0.6)
    ended = begun(text, least=math.log(0.2)).extend([0], [after([3], 0.4)], [5])[0]
    assert (
        free.scores[len(ended)] + math.log(0.4) < math.log(0.2) <= free.scores[len(ended) - 1] + math.log(0.4)
    )
    assert 0 < len(ended) < 5


def test_one_whose_tokens_were_wrong_is_believed_less_for_a_while() -> None:
    beginnings = [(10 * number, 10 * number + 1) for number in range(40)]
    text = [token for pair in beginnings for token in range(pair[0], pair[0] + 8)]
    lookup, stubborn = begun(text, least=math.log(0.01)), begun(text)
    lengths: dict[ChainedLookup, list[int]] = {lookup: [], stubborn: []}
    for step, pair in enumerate(beginnings[:-1]):
        for each, found in lengths.items():
            found.append(len(each.propose([0], [5])[0]))
            each.observe(0, StepOutcome([1000 + step, *pair]))
    assert lengths[stubborn][1:] == [5] * 38, "without a bound it always has the most"
    assert lengths[lookup][1] == 5 and lengths[lookup].count(0) > 20
    for token in range(2000, 2040):
        lookup.observe(0, StepOutcome([token]))
    lookup.observe(0, StepOutcome(beginnings[-1]))
    assert len(lookup.propose([0], [5])[0]) == 5


def test_what_was_right_and_what_was_never_reached_is_not_held_against_it() -> None:
    lookup = begun([1, 2, 3, 4, 5, 6, 7, 1, 2], least=math.log(0.01))
    lookup.extend([0], [EMPTY], [2])
    lookup.extend([0], [after([3, 4, 40, 6, 7], 1, 1, 1, 1, 1)], [1])
    lookup.observe(0, StepOutcome([3, 4, 8]))
    assert lookup._fared[0].trust == 1.0


def test_likelihoods_are_those_of_the_counts() -> None:
    """A context's shorter one counts for two observations of it."""
    table = NgramTable(3)
    table.extend([1, 2, 5, 1, 2, 6, 3, 2, 5, 1, 2])
    ((token, chance),) = table.likely(1)  # after 2: 5 twice, 6 once; after 1 2: 5 once, 6 once
    assert token == 6 and chance == pytest.approx((1 + 2 * (1 / (3 + 2))) / (2 + 2))
    ((token, chance),) = table.likely(1, after=[5, 1])  # after 1: 2 always, three times; so after 5 1, twice
    assert token == 2 and chance == pytest.approx((2 + 2 * (3 / (3 + 2))) / (2 + 2))
    ((token, chance),) = table.likely(1, after=[3, 2])  # after 3 2: 5 once
    assert token == 5 and chance == pytest.approx((1 + 2 * (2 / (3 + 2))) / (1 + 2))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.lists(st.integers(0, 5), max_size=4))
def test_likelihoods_are_likelihoods(text: list[int], more: list[int]) -> None:
    table = NgramTable(4)
    table.extend(text)
    found = list(table.likely(8, after=more))
    assert [token for token, _ in found] == list(table.draft(8, after=more))
    assert all(0 < chance < 1 for _, chance in found)
