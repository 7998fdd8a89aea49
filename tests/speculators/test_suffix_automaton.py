"""Suffix decoding drafts what the authors' own implementation drafts, and what a search by the definition finds."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speculators import suffix_automaton
from speculators.outcome import StepOutcome
from speculators.suffix_automaton import LEAST_SHARE, SuffixPool, SuffixSpeculator

texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)
RECORDED = json.loads(Path(__file__).with_name("arctic_inference.json").read_text())
"""80 drafts of `SuffixDecodingCache` of Arctic Inference 0.1.1 (max_tree_depth 64, its other defaults), for random
prompts, half of them after answers to others."""
EQUALLY_OFTEN = 2  # of those in which it takes another one of two tokens that were seen equally often


def naive_draft(text: list[int], length: int, longest: int) -> list[int]:
    """Go through all matches, and count what follows every place."""
    best: tuple[float, list[int]] = 0.0, []
    for match in range(1, min(longest, len(text) - 1) + 1):
        ends = [end for end in range(match, len(text) + 1) if text[end - match : end] == text[-match:]]
        if len(ends) == 1:
            break
        draft: list[int] = []
        score, places = 0.0, ends
        while len(draft) < min(length, match):
            counts = Counter(text[end] for end in places if end < len(text))
            if not counts:
                break
            token, count = counts.most_common(1)[0]
            if count / len(ends) < LEAST_SHARE:
                break
            draft.append(token)
            score += count / len(ends)
            places = [end + 1 for end in places if end < len(text) and text[end] == token]
        if score > best[0] - 1e-9:
            best = score, draft
    return best[1]


@given(texts, st.integers(1, 6), st.integers(0, 9), st.data())
def test_drafts_what_the_definition_says(
    text: list[int], longest: int, length: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(text)))
    speculator = SuffixSpeculator(draft_length=9, ngram=longest)
    speculator.start(1, text[:cut])
    speculator.propose([1], [4])
    speculator.observe(1, StepOutcome(text[cut:]))
    assert list(speculator.propose([1], [length])[0].tokens) == naive_draft(text, length, longest)


def agreeing(recorded: list[dict[str, Any]]) -> int:
    equal = 0
    for case in recorded:
        speculator = SuffixSpeculator(case["draft_length"], global_pool=bool(case["others"]))
        for request, answer in enumerate(case["others"]):
            speculator.start(request, [0])
            speculator.observe(request, StepOutcome(answer))
            speculator.finish(request)
        speculator.start(99, case["text"])
        equal += list(speculator.propose([99], [9])[0].tokens) == case["draft"]
    return equal


def test_drafts_what_the_authors_implementation_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert agreeing(RECORDED) == len(RECORDED) - EQUALLY_OFTEN
    monkeypatch.setattr(suffix_automaton, "LEAST_SHARE", 0.4)
    assert agreeing(RECORDED) < len(RECORDED) - 10


def test_the_surer_a_token_the_greater_its_score() -> None:
    speculator = SuffixSpeculator(draft_length=2)
    speculator.start(0, [1, 2, 7, 8, 1, 2, 7, 9, 1, 2, 7, 8, 1, 2])
    tree = speculator.propose([0], [2])[0]
    assert tree.tokens == (7, 8)
    assert np.exp(tree.scores) == pytest.approx([3 / 4, 2 / 4])


def test_answers_of_others_are_searched_if_asked_for_and_prompts_of_others_never() -> None:
    for pool, drafted in ((True, (3, 4)), (False, ())):
        speculator = SuffixSpeculator(draft_length=2, global_pool=pool)
        speculator.start(0, [9, 8, 7])
        speculator.observe(0, StepOutcome([1, 2, 3, 4]))
        speculator.finish(0)
        speculator.start(1, [5, 1, 2])
        assert speculator.propose([1], [2])[0].tokens == drafted
        speculator.start(2, [5, 9, 8])
        assert speculator.propose([2], [2])[0].tokens == ()


@given(
    st.lists(texts, max_size=12),
    st.integers(1, 5),
    st.integers(5, 60),
    texts.filter(lambda text: len(text) > 1),
)
def test_a_pool_is_the_newest_answers_and_no_more(
    answers: list[list[int]], most: int, tokens: int, end: list[int]
) -> None:
    """Segments of few tokens, so that there are many of them, sorted and not."""
    pool = SuffixPool(most, 8, tokens, segment=16)
    for answer in answers:
        pool.add(np.array(answer, np.int32))
    kept: list[list[int]] = []
    for answer in reversed(answers[-most:]):
        if sum(len(each) + 1 for each in [answer, *kept]) > tokens:
            break
        kept.insert(0, answer)
    places = sum(answer[at : at + 2] == end[-2:] for answer in kept for at in range(len(answer) - 2))
    pattern = np.full(8, -1, np.int32)
    pattern[: min(8, len(end))] = end[::-1][:8]
    drafted, shares = pool.draft(pattern, 4, own=0)
    assert bool(drafted) == bool(places)
    assert all(share <= 1 for share in shares)


def test_a_long_text_grows_in_place() -> None:
    speculator = SuffixSpeculator(draft_length=4)
    text = [*range(3000), *range(100)]
    speculator.start(0, text[:7])
    for token in text[7:]:
        speculator.observe(0, StepOutcome([token]))
    assert speculator.propose([0], [4])[0].tokens == (100, 101, 102, 103)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft_length": 0}, "draft_length is 0; it must be 1 or more"),
        ({"ngram": 0}, "ngram is 0; it must be 1 or more, or -1"),
        ({"global_pool_size": 0}, "global_pool_size is 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SuffixSpeculator(**settings)  # type: ignore[arg-type]


def test_texts_of_ones_own_are_searched_for_every_request() -> None:
    speculator = SuffixSpeculator(draft_length=3)
    speculator.search([np.array(text, np.int32) for text in ([1, 2, 3], [7, 8, 9, 10], [7, 8, 9, 11])])
    for request in (0, 1):
        speculator.start(request, [5, 7, 8])
        assert speculator.propose([request], [3])[0].tokens == (9, 10)
        speculator.finish(request)


@pytest.mark.parametrize("text", [[7] * 4000, [7, 8] * 2000, [7, 8, 7, 9] * 1000])
def test_what_stands_everywhere_is_looked_at_where_it_stood_last(text: list[int]) -> None:
    """A text that turns in circles would cost a fifth of a second a step."""
    speculator = SuffixSpeculator(draft_length=31)
    speculator.start(0, text)
    places = speculator._states[0].text.places(32, 31)
    assert 0 < len(places.before) == len(places.after) <= 512
    period = len(text) // text.count(text[-1])
    assert list(speculator.propose([0], [31])[0].tokens) == (text[-period:] * 31)[:31]


def test_a_long_match_is_found_however_often_its_last_token_stood_since() -> None:
    speculator = SuffixSpeculator(draft_length=9)
    often = [token for number in range(600) for token in (1, 1000 + number)]
    speculator.start(0, [7, 8, 9, 1, 2, 3, 4, 5, *often, 7, 8, 9, 1])
    assert speculator.propose([0], [9])[0].tokens == (2, 3, 4, 5)


def test_texts_are_few_searches_however_many_there_are_and_room_that_stays_empty_takes_no_memory() -> None:
    speculator = SuffixSpeculator(draft_length=3)
    speculator.search([np.arange(40_000, dtype=np.int32)] * 40)
    assert speculator._texts is not None
    segments = speculator._texts._segments
    assert len(segments) < 16
    assert sum(len(each._order) for each in segments) < 1.01 * 40 * 40_000
    speculator.start(0, [30_000, 30_001])
    assert speculator.propose([0], [3])[0].tokens == (30_002, 30_003)
