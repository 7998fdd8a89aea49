"""ANPD: the trie drafts what counting n-grams by hand gives, from what was emitted and nothing else."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.anpd import AnpdSpeculator, NgramTable
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree

texts = st.lists(st.integers(0, 3), max_size=40)


def naive_draft(text: list[int], ngram: int, length: int) -> list[int]:
    """Drafting straight from the definition: count every n-gram of the text again for each query."""
    drafted: list[int] = []
    while len(drafted) < length:
        current = text + drafted
        for n in range(ngram, 1, -1):
            context = current[len(current) - n + 1 :]
            ends = [end for end in range(n, len(text) + 1) if text[end - n : end - 1] == context]
            if len(context) == n - 1 and ends:
                counts = Counter(text[end - 1] for end in ends)
                latest = {text[end - 1]: end for end in ends}
                drafted.append(max(counts, key=lambda token: (counts[token], latest[token])))
                break
        else:
            break
    return drafted


@given(texts, st.integers(2, 6), st.integers(0, 9))
def test_trie_drafts_what_the_definition_says(text: list[int], ngram: int, length: int) -> None:
    table = NgramTable(ngram)
    table.extend(text)
    assert list(table.draft(length)) == naive_draft(text, ngram, length)


@given(texts, st.data())
def test_text_may_come_in_pieces(text: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    whole, pieces = AnpdSpeculator(), AnpdSpeculator()
    whole.start(1, text)
    pieces.start(1, text[:cut])
    pieces.propose([1], [7])
    pieces.observe(1, StepOutcome(text[cut:]))
    assert pieces.propose([1], [7]) == whole.propose([1], [7])


def test_longest_context_wins() -> None:
    # After 2 alone, 9 is the most frequent; after (1, 2) it is 3.
    speculator = AnpdSpeculator(ngram=3, draft_length=1)
    speculator.start(0, [1, 2, 3, 5, 2, 9, 6, 2, 9, 1, 2])
    assert speculator.propose([0], [1]) == [TokenTree.chain([3])]


def test_ties_go_to_the_latest() -> None:
    speculator = AnpdSpeculator(ngram=2, draft_length=1)
    speculator.start(0, [1, 7, 1, 8, 1])
    assert speculator.propose([0], [1]) == [TokenTree.chain([8])]
    speculator.observe(0, StepOutcome([7, 1]))
    assert speculator.propose([0], [1]) == [TokenTree.chain([7])]


@pytest.mark.parametrize("prompt", [[], [4], [1, 2, 3, 4]])
def test_no_draft_on_a_miss(prompt: list[int]) -> None:
    speculator = AnpdSpeculator()
    speculator.start(0, prompt)
    assert len(speculator.propose([0], [7])[0]) == 0


def test_chain_stops_at_the_first_miss() -> None:
    table = NgramTable(3)
    table.extend([1, 2, 3])
    assert list(table.draft(5)) == []
    table.extend([9, 1])
    assert list(table.draft(5)) == [2, 3, 9, 1, 2]
    table = NgramTable(5)
    table.extend([8, 1, 2, 1])
    assert list(table.draft(2)) == [2, 1]


def test_budget_and_draft_length_both_limit_the_chain() -> None:
    speculator = AnpdSpeculator(draft_length=4)
    for request_id in range(4):
        speculator.start(request_id, [1, 2, 3] * 5)
    assert [len(tree) for tree in speculator.propose([0, 1, 2, 3], [0, 2, 4, 9])] == [0, 2, 4, 4]


def test_proposing_changes_nothing() -> None:
    speculator = AnpdSpeculator()
    speculator.start(0, [1, 2, 3, 4, 2, 3, 1, 2])
    first = speculator.propose([0], [7])
    assert all(speculator.propose([0], [7]) == first for _ in range(5))


def test_requests_do_not_see_each_other() -> None:
    speculator = AnpdSpeculator()
    speculator.start(0, [1, 2, 3, 1, 2])
    speculator.start(1, [1, 2, 9, 1, 2])
    left, right = speculator.propose([0, 1], [1, 1])
    assert (left.tokens, right.tokens) == ((3,), (9,))
    speculator.finish(0)
    assert speculator.propose([1], [1]) == [right]


def test_memory_grows_with_the_text_and_is_bounded_by_it() -> None:
    table = NgramTable(5)
    table.extend(range(100))
    assert len(table) == 100 + 99 + 98 + 97 + 96
    size = len(table)
    list(table.draft(50))
    assert len(table) == size


@pytest.mark.parametrize("settings", [{"ngram": 1}, {"draft_length": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        AnpdSpeculator(**settings)
