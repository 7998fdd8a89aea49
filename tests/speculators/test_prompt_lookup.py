"""Prompt lookup drafts what a search through the whole text finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators.outcome import StepOutcome
from speculators.prompt_lookup import PromptLookupSpeculator

texts = st.lists(st.integers(0, 3), max_size=40)


def naive_draft(text: list[int], ngram: int, length: int, use_oldest: bool) -> tuple[int, ...]:
    """Search the text for its own last tokens, the longest first."""
    for size in range(min(ngram, len(text)), 0, -1):
        suffix = text[len(text) - size :]
        ends = [end for end in range(size, len(text)) if text[end - size : end] == suffix]
        if ends:
            end = ends[0 if use_oldest else -1]
            return tuple(text[end : end + length])
    return ()


@given(texts, st.integers(1, 5), st.integers(0, 9), st.booleans(), st.data())
def test_drafts_what_the_definition_says(
    text: list[int], ngram: int, length: int, use_oldest: bool, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(text)))
    speculator = PromptLookupSpeculator(ngram, 9, use_oldest)
    speculator.start(1, text[:cut])
    speculator.propose([1], [4])
    speculator.observe(1, StepOutcome(text[cut:]))
    assert speculator.propose([1], [length])[0].tokens == naive_draft(text, ngram, length, use_oldest)


@pytest.mark.parametrize(("use_oldest", "drafted"), [(True, (7, 1)), (False, (8, 1))])
def test_which_of_several_occurrences(use_oldest: bool, drafted: tuple[int, ...]) -> None:
    speculator = PromptLookupSpeculator(ngram=2, draft_length=2, use_oldest=use_oldest)
    speculator.start(0, [1, 2, 7, 1, 2, 8, 1, 2])
    assert speculator.propose([0], [9])[0].tokens == drafted


@pytest.mark.parametrize("setting", ["ngram", "draft_length"])
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is 0; it must be 1 or more"):
        PromptLookupSpeculator(**{setting: 0})
