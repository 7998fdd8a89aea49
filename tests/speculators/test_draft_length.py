"""How the draft length of a request follows what was accepted."""

from hypothesis import given
from hypothesis import strategies as st

from speculators.draft_length import DraftLength


def test_it_doubles_while_everything_is_accepted() -> None:
    length = DraftLength(20)
    seen = []
    for _ in range(5):
        seen.append(length.current)
        length.update(length.current, length.current, length.current)
    assert seen == [3, 6, 12, 20, 20]


def test_it_falls_to_what_was_accepted_and_one_more() -> None:
    length = DraftLength(20)
    for _ in range(3):
        length.update(length.current, length.current, length.current)
    length.update(20, 20, 4)
    assert length.current == 5


def test_it_halves_when_nothing_is_accepted_but_stays_at_one() -> None:
    length = DraftLength(20)
    for _ in range(3):
        length.update(length.current, length.current, length.current)
    seen = []
    for _ in range(6):
        length.update(length.current, length.current, 0)
        seen.append(length.current)
    assert seen == [10, 5, 2, 1, 1, 1]


def test_a_short_draft_that_was_right_does_not_shorten_it() -> None:
    length = DraftLength(16)
    for _ in range(2):
        length.update(length.current, length.current, length.current)
    length.update(1, 1, 1)
    assert length.current == 12


def test_a_tree_grows_as_a_chain_does() -> None:
    length = DraftLength(24)
    length.update(nodes=6, depth=3, accepted=3)
    assert length.current == 12
    length.update(nodes=12, depth=4, accepted=2)
    assert length.current == 9


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40)), max_size=30),
)
def test_it_stays_between_one_and_the_most(most: int, steps: list[tuple[int, int, int]]) -> None:
    length = DraftLength(most)
    for accepted, depth, nodes in steps:
        depth = min(depth, nodes, length.current)
        length.update(min(nodes, length.current), depth, min(accepted, depth))
        assert 1 <= length.current <= most


def test_a_request_without_speculation_never_drafts() -> None:
    assert DraftLength(0).current == 0
