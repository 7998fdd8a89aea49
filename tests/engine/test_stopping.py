"""Stop words are met in the text, wherever tokens begin and end; nothing of them is given out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.automaton import Automaton
from engine.errors import RequestError
from engine.serving.text import TextCodec
from engine.stopping import MOST_LENGTH, MOST_WORDS, StopPoint, StopWords, check_words
from tests.end_to_end.tiny_tokenizers import FAMILY, SPECIAL_TOKENS, TOKENIZER_NAMES, write_tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
letters = st.text("ab ", max_size=12)
words = st.lists(st.text("ab ", min_size=1, max_size=4), max_size=4)


def first_end(text: Sequence[str], found: Sequence[str]) -> tuple[int, int] | None:
    """Where the first complete word ends, and how long the longest one is that ends there."""
    for end in range(len(text) + 1):
        lengths = [len(word) for word in found if "".join(text[:end]).endswith(word)]
        if lengths:
            return end, max(lengths)
    return None


@given(text=letters, found=words)
def test_the_automaton_finds_the_first_word_that_is_complete(text: str, found: list[str]) -> None:
    automaton, state = Automaton(found), 0
    seen = None
    for end, symbol in enumerate(text, start=1):
        state = automaton.step(state, symbol)
        begun = [n for n in range(1, end + 1) if any(word.startswith(text[end - n : end]) for word in found)]
        assert automaton.held[state] == max(begun, default=0)
        if automaton.found[state]:
            seen = end, automaton.found[state]
            break
    assert seen == first_end(text, found)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], TextCodec]:
    root = tmp_path_factory.mktemp("tokenizers")
    folders = {name: write_tokenizer(root / name, name) for name in TOKENIZER_NAMES}
    return {
        (name, skip): TextCodec(folder, skip_special_tokens=skip)
        for name, folder in folders.items()
        for skip in (True, False)
    }


@pytest.fixture(scope="module", params=[(name, skip) for name in TOKENIZER_NAMES for skip in (True, False)])
def codec(request: pytest.FixtureRequest, codecs: dict[tuple[str, bool], TextCodec]) -> TextCodec:
    return codecs[request.param]


class Watched:
    """An output as a client sees it: chunks at the places where steps end."""

    def __init__(self, codec: TextCodec, tokens: Sequence[int], found: Sequence[str], step: int) -> None:
        watch = StopWords(found, codec).watch()
        self.given, self.chunks, self.read = 0, [""], 0
        for token in tokens:
            self.read += 1
            if watch.add(token):
                break
            if self.read % step == 0:
                self.chunks.append(
                    codec.decode_next(tokens[: self.given], tokens[self.given : watch.safe], final=False)
                )
                self.given = watch.safe
        watch.close()
        self.end = watch.end or StopPoint(len(tokens), 0)
        self.stopped = watch.end is not None
        last = codec.decode_next(tokens[: self.given], tokens[self.given : self.end.tokens], final=True)
        self.chunks.append(last[: len(last) - self.end.cut])
        self.text = "".join(self.chunks)


def expected(codec: TextCodec, tokens: Sequence[int], found: Sequence[str]) -> str:
    """The text before the first complete word; the one place where special tokens have a text is the search."""
    shown = codec.decode(tokens)
    end = first_end(shown, found)
    return shown if end is None else shown[: end[0] - end[1]]


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(
            ["the", " draft", "\n", "\n\n", ".", " ", "User", ":", "ß", "世", "界", FAMILY, "🙂", REPLACEMENT]
        ),
        max_size=14,
    ).map("".join),
    picks=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=3),
    step=st.integers(1, 4),
)
def test_any_text_with_words_taken_from_it(
    codec: TextCodec, text: str, picks: list[tuple[int, int]], step: int
) -> None:
    tokens = codec.encode(text)
    shown = codec.decode(tokens)
    found = [word for begin, length in picks if (word := shown[begin : begin + length])]
    output = Watched(codec, tokens, found, step)
    assert output.text == expected(codec, tokens, found)
    assert output.stopped == (first_end(shown, found) is not None)
    check_no_part_of_a_word(output, shown, found)


def check_no_part_of_a_word(output: Watched, shown: str, found: Sequence[str]) -> None:
    """What had been given out at any time is never more than the text before a word that has begun."""
    so_far = ""
    for chunk in output.chunks:
        so_far += chunk
        assert output.text.startswith(so_far)


@settings(max_examples=150, deadline=None)
@given(
    picks=st.lists(st.integers(0, 10_000), max_size=40),
    wanted=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 4)), max_size=3),
    step=st.integers(1, 4),
)
def test_any_tokens_with_words_taken_from_their_text(
    codec: TextCodec, picks: list[int], wanted: list[tuple[int, int]], step: int
) -> None:
    """Bytes that make no characters, special tokens, ids without a token."""
    tokens = [pick % 600 for pick in picks]
    shown = codec.decode(tokens)
    found = [word for begin, length in wanted if (word := shown[begin : begin + length])]
    output = Watched(codec, tokens, found, step)
    assert output.text == expected(codec, tokens, found)


@pytest.mark.parametrize("step", [1, 3, 50])
def test_words_that_no_token_sequence_matches(step: int, codecs: dict[tuple[str, bool], TextCodec]) -> None:
    """The tokenizer joins their parts with what stands beside them."""
    for name in ("byte-level", "byte-fallback"):
        codec = codecs[name, True]
        tokens = codec.encode(
            "the output holds two guesses; a draft is verified, and one target proposes three"
        )
        for word in ("holds two g", "t hol", "es; a", "; ", "d, and one t", "get prop"):
            output = Watched(codec, tokens, [word], step)
            whole = codec.decode(tokens)
            assert output.text == whole[: whole.index(word)]
            assert output.stopped and output.read < len(tokens)


def test_the_token_in_which_a_word_begins_is_the_last_one(codecs: dict[tuple[str, bool], TextCodec]) -> None:
    codec = codecs["byte-level", True]
    tokens = codec.encode("the target verifies")
    pieces = [codec.decode([token]) for token in tokens]
    for place, piece in enumerate(pieces):
        for inside in range(len(piece)):
            word = "".join(pieces)[len("".join(pieces[:place])) + inside :]
            end = Watched(codec, tokens, [word], 1).end
            assert end == StopPoint(place + (inside > 0), len(piece) - inside if inside else 0, word)


def test_tokens_are_given_out_as_soon_as_no_word_can_hold_them(
    codecs: dict[tuple[str, bool], TextCodec],
) -> None:
    codec = codecs["byte-level", True]
    tokens = codec.encode("one two three one two four")
    watch = StopWords(["two four"], codec).watch()
    held = []
    for count, token in enumerate(tokens, start=1):
        watch.add(token)
        held.append((codec.decode(tokens[watch.safe : count]), codec.decode(tokens[:count])))
    for back, text in held[:-1]:
        begun = max(
            (n for n in range(len(text) + 1) if "two four".startswith(text[len(text) - n :])), default=0
        )
        longest = max(len(codec.decode([token])) for token in tokens)
        assert begun <= len(back) < begun + longest
    assert watch.end is not None


def test_special_tokens_are_found_by_their_names(codecs: dict[tuple[str, bool], TextCodec]) -> None:
    for skip in (True, False):
        codec = codecs["byte-level", skip]
        tokens = [*codec.encode("one two"), 2, *codec.encode("\nthree")]
        for word in (SPECIAL_TOKENS[2], f"{SPECIAL_TOKENS[2]}\n"):
            output = Watched(codec, tokens, [word], 1)
            assert (output.text, output.stopped) == ("one two", True)
            assert output.end == StopPoint(len(codec.encode("one two")), 0, word)
        output = Watched(codec, tokens, [f"wo{SPECIAL_TOKENS[2]}"], 1)
        assert output.text == "one t"
        output = Watched(codec, tokens, ["_end", "|"], 1)
        assert output.stopped != skip, "a name is met as a whole, unless it is text"
    spelled = [token for character in SPECIAL_TOKENS[2] for token in codec.encode(character)]
    assert Watched(codec, [*codec.encode("one"), *spelled], [SPECIAL_TOKENS[2]], 1).text == "one"


def test_bytes_of_a_character_that_are_split_over_tokens(codecs: dict[tuple[str, bool], TextCodec]) -> None:
    for name in ("byte-level", "byte-fallback"):
        codec = codecs[name, True]
        tokens = codec.encode(f"a{FAMILY}世b🙂c")
        whole = codec.decode(tokens)
        for begin in range(len(whole)):
            output = Watched(codec, tokens, [whole[begin : begin + 2]], 1)
            assert output.text == whole[: whole.index(whole[begin : begin + 2])]
            assert REPLACEMENT not in output.text


def test_a_word_of_bytes_that_end_the_output_is_found_at_the_end(
    codecs: dict[tuple[str, bool], TextCodec],
) -> None:
    """Byte tokens have no text before another kind of token follows, or none."""
    codec = codecs["byte-fallback", True]
    tokens = codec.encode("oneøø")
    watch = StopWords(["øø"], codec).watch()
    assert not any(watch.add(token) for token in tokens)
    assert watch.close() and watch.end == StopPoint(len(tokens) - 4, 0, "øø")


def test_a_word_may_begin_in_what_an_earlier_call_has_given_out(
    codecs: dict[tuple[str, bool], TextCodec],
) -> None:
    codec = codecs["byte-level", True]
    tokens = codec.encode("one two three")
    for cut in range(len(tokens) - 1):
        watch = StopWords([" two thr"], codec).watch(tokens[:cut])
        assert any(watch.add(token) for token in tokens[cut:]) and watch.end is not None
        text = codec.decode(tokens[: cut + watch.end.tokens])
        kept = text[: len(text) - watch.end.cut]
        assert kept == max(codec.decode(tokens[:cut]), "one", key=len)


def test_too_many_words_are_refused_at_once() -> None:
    check_words(["x"] * MOST_WORDS, "stop_words")
    check_words(["x" * MOST_LENGTH], "stop_words")
    with pytest.raises(RequestError, match=f"stop_words holds 200000 words; at most {MOST_WORDS} are taken"):
        check_words(["x"] * 200_000, "stop_words")
    with pytest.raises(
        RequestError, match=f"holds {MOST_LENGTH + 2} characters in all; at most {MOST_LENGTH}"
    ):
        check_words(["x" * MOST_LENGTH, "yy"], "stop_words")


def test_many_words_cost_no_more_per_character_than_one() -> None:
    """Counted in steps of the automaton, which follows at most one shorter state for each character before."""
    many = [f"{number:04} {number * 7:03}" for number in range(900)]
    text = "0123 0124 861 0897 " * 200
    visited = 0

    class Counting(dict[str, int]):
        def __contains__(self, key: object) -> bool:
            nonlocal visited
            visited += 1
            return super().__contains__(key)

    automaton = Automaton(many)
    automaton._next = [Counting(entry) for entry in automaton._next]
    state = 0
    for symbol in text:
        state = automaton.step(state, symbol)
    assert visited <= 2 * len(text) + 1
