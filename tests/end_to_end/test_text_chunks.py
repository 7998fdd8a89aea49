"""Streamed chunks concatenate to the text of the whole output, for every kind of tokenizer and any cuts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.serving.text import TextCodec, decode_prompt
from tests.end_to_end.tiny_tokenizers import FAMILY, FLAG, SPECIAL_TOKENS, TOKENIZER_NAMES, write_tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PIECES = (
    *SPECIAL_TOKENS,
    FAMILY,
    FLAG,
    REPLACEMENT,
    " ",
    "  ",
    "\n",
    "the",
    " draft",
    "ß",
    "世",
    "🙂",
    "'s",
    " .",
    "n't",
)

VOCABULARY = 600  # of the largest; ids beyond a tokenizer's own decode to nothing


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_tokenizer(root / name, name) for name in TOKENIZER_NAMES}


@pytest.fixture(scope="module", params=[(name, skip) for name in TOKENIZER_NAMES for skip in (True, False)])
def codec(request: pytest.FixtureRequest, folders: dict[str, Path]) -> TextCodec:
    name, skip = request.param
    return TextCodec(folders[name], skip_special_tokens=skip)


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path]) -> dict[str, TextCodec]:
    return {name: TextCodec(folder) for name, folder in folders.items()}


def chunks(codec: TextCodec, ids: Sequence[int], cuts: Sequence[int]) -> list[str]:
    """The texts of a stream whose chunks end at the cuts; the last one ends the request."""
    ends = [*sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    starts = [0, *ends[:-1]]
    spans = list(zip(starts, ends, strict=True))
    return [codec.decode_next(ids[:a], ids[a:b], final=n == len(spans)) for n, (a, b) in enumerate(spans, 1)]


cut_points = st.lists(st.integers(0, 120), max_size=30)


@settings(max_examples=120, deadline=None)
@given(picks=st.lists(st.integers(0, 10_000), max_size=120), cuts=cut_points)
def test_any_tokens_cut_anywhere(codec: TextCodec, picks: list[int], cuts: list[int]) -> None:
    ids = [pick % VOCABULARY for pick in picks]
    assert "".join(chunks(codec, ids, cuts)) == codec.decode(ids)


@settings(max_examples=80, deadline=None)
@given(
    text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=8)), max_size=12).map("".join),
    cuts=cut_points,
)
def test_any_text_cut_anywhere(codec: TextCodec, text: str, cuts: list[int]) -> None:
    ids = codec.encode(text)
    assert "".join(chunks(codec, ids, cuts)) == codec.decode(ids)


@settings(max_examples=80, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 90)), max_size=5), step=st.integers(1, 5)
)
def test_long_runs_of_one_token(codec: TextCodec, runs: list[tuple[int, int]], step: int) -> None:
    """Runs longer than the window of tokens that is decoded again: special tokens, halves of characters, marks."""
    ids = [pick % VOCABULARY for pick, length in runs for _ in range(length)]
    assert "".join(chunks(codec, ids, range(0, len(ids), step))) == codec.decode(ids)


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback"])
def test_every_byte_sequence_of_two(name: str, codecs: dict[str, TextCodec]) -> None:
    """All pairs of tokens of a single byte, valid UTF-8 or not, with letters around them, token by token."""
    codec = codecs[name]
    letter = codec.encode("x")[-1]
    singles = [token for token in range(VOCABULARY) if len(codec.decode([letter, token, letter])) == 3]
    assert len(singles) >= 256
    for first in singles:
        for second in singles[:: 1 + first % 3]:
            ids = [letter, first, second, letter]
            assert "".join(chunks(codec, ids, (1, 2, 3))) == codec.decode(ids)


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
def test_text_is_not_held_back_longer_than_needed(name: str, codecs: dict[str, TextCodec]) -> None:
    codec = codecs[name]
    ids = codec.encode("the draft proposes one two three")
    for end in range(1, len(ids)):
        streamed = chunks(codec, ids, range(1, end))[:-1]
        assert "".join(streamed) == codec.decode(ids[: end - 1])


@pytest.mark.parametrize("name", ["byte-level", "byte-fallback"])
def test_no_chunk_shows_half_a_character(name: str, codecs: dict[str, TextCodec]) -> None:
    codec = codecs[name]
    ids = codec.encode(f"{FAMILY} Ⅷ {FLAG} ŵ 𝄞")
    parts = chunks(codec, ids, range(len(ids)))
    assert len(ids) > 15
    assert REPLACEMENT not in "".join(parts)


def test_an_output_that_ends_inside_a_character_says_so(codecs: dict[str, TextCodec]) -> None:
    ids = codecs["byte-level"].encode("a𝄞")[:-1]
    assert chunks(codecs["byte-level"], ids, range(len(ids)))[-1].endswith(REPLACEMENT)


def test_prompts_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(RequestError, match="not valid UTF-8 at byte 2"):
        decode_prompt(b"ab\xff")
