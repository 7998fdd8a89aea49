"""A lookup beside a drafter: who drafts when, and that both follow the text."""

from collections.abc import Sequence

import pytest

from speculators.base import Speculator
from speculators.enhanced import EnhancedSpeculator
from speculators.prompt_lookup import PromptLookupSpeculator
from speculators.tree import EMPTY, TokenTree

REPEATED = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4]


def enhanced(threshold: int) -> Speculator:
    """Beside a drafter that goes on after the oldest occurrence of a single token."""
    return EnhancedSpeculator(PromptLookupSpeculator(ngram=1, draft_length=4), threshold)


def test_a_long_match_goes_first_and_the_drafter_has_the_rest() -> None:
    speculator = enhanced(threshold=3)
    speculator.start(0, [4, 9, 9, *REPEATED])  # the drafter finds the first 4, the lookup the longer match
    speculator.start(1, [8, 3, 5, 8])
    speculator.start(2, [11, 12])
    trees = speculator.propose([0, 1, 2], [4, 2, 4])
    assert [tree.tokens for tree in trees] == [(5, 6, 7, 1), (3, 5), ()]


def test_the_threshold_is_the_shortest_match() -> None:
    prompt = [4, 9, 9, *REPEATED]
    for threshold, tokens in ((4, (5, 6, 7, 1)), (5, (9, 9, 1, 2))):
        speculator = enhanced(threshold)
        speculator.start(0, prompt)
        assert speculator.propose([0], [4])[0].tokens == tokens


def test_both_follow_what_is_emitted() -> None:
    speculator = enhanced(threshold=2)
    speculator.start(0, [1, 2, 3])
    speculator.observe(0, [1, 2])
    assert speculator.propose([0], [1])[0].tokens == (3,)
    speculator.observe(0, [9, 1])
    assert speculator.propose([0], [1])[0].tokens == (2,)  # the drafter's: nothing follows (9, 1) yet


class Unsure(PromptLookupSpeculator):
    """A drafter that ends its drafts by itself; here it never has one."""

    ends_drafts = True

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [EMPTY] * len(request_ids)


def test_beside_a_drafter_that_ends_its_drafts_the_lookup_follows_what_was_accepted() -> None:
    speculator = EnhancedSpeculator(Unsure(draft_length=12), 2)
    text = list(range(60))
    speculator.start(0, [*text, 0, 1])
    lengths, emitted = [], 2
    for accepted in (True, True, False, True):
        drafted = speculator.propose([0], [12])[0].tokens
        lengths.append(len(drafted))
        assert list(drafted) == text[emitted : emitted + len(drafted)]
        if accepted:
            speculator.observe(0, text[emitted : emitted + len(drafted) + 1])
            emitted += len(drafted) + 1
        else:
            speculator.observe(0, [99, 20, 21])
            emitted = 22
    assert lengths[1] == 2 * lengths[0]
    assert lengths[3] < lengths[2]


def test_a_request_ends_for_both() -> None:
    speculator = enhanced(threshold=2)
    speculator.start(0, [1, 2])
    speculator.finish(0)
    with pytest.raises(KeyError, match="request 0 is not running"):
        speculator.propose([0], [1])
    speculator.start(0, [3, 4])
