"""How much of a text's end has stood in it before: as a search through the whole text says."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from speculators.match import LONGEST, Repetition


def searched(text: Sequence[int]) -> int:
    """The longest end that also stands further in front, at most LONGEST."""
    for size in range(min(LONGEST, len(text) - 1), 0, -1):
        end = text[len(text) - size :]
        if any(text[start : start + size] == end for start in range(len(text) - size)):
            return size
    return 0


# Few different tokens, and whole pieces again: so that ends of all lengths occur, once and more often.
pieces = st.lists(
    st.one_of(
        st.lists(st.integers(0, 3), max_size=5),
        st.sampled_from([[1, 2, 3, 1, 2, 0], [2, 2, 2, 2], [3, 2, 1, 0, 3, 2, 1, 1, 2, 0]]),
    ),
    max_size=12,
)


@given(pieces)
def test_the_match_is_the_longest_end_that_stood_there_before(found: list[list[int]]) -> None:
    repetition, text = Repetition(), list[int]()
    for piece in found:
        repetition.extend(piece)
        text += piece
        assert (repetition.match, repetition.length) == (searched(text), len(text))


def test_a_longer_match_is_told_as_the_longest() -> None:
    assert Repetition(list(range(12)) * 2).match == LONGEST
