"""A prompt that cannot fit is refused without being tokenised as a whole; one that fits never is."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.errors import RequestError
from engine.serving.bounded_text import BoundedCodec
from engine.serving.text import TextCodec
from tests.end_to_end.tiny_tokenizers import CORPUS, TOKENIZER_NAMES, write_tokenizer

MOST = 64
NOVELS = {
    "a word again and again": "the target verifies ",
    "one letter": "x",
    "spaces": " ",
    "characters that it does not know": "\N{CUNEIFORM SIGN A}",
    "noise": "".join(random.Random(1).choices("abcxyz.,;(){}é你", k=997)),
}


@pytest.fixture(params=TOKENIZER_NAMES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path, request.param)


@pytest.mark.parametrize("piece", NOVELS.values(), ids=NOVELS.keys())
@pytest.mark.parametrize("characters", [30_000, 3_000_000])
def test_a_novel_is_refused_by_its_first_page(
    piece: str, characters: int, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode = TextCodec.encode

    def counted(self: TextCodec, text: str) -> list[int]:
        seen.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(TextCodec, "encode", counted)
    codec = BoundedCodec(directory, most_tokens=MOST)
    text = (piece * (characters // len(piece) + 1))[:characters]
    try:
        assert len(codec.encode(text)) <= MOST + 512, "what does not fit by little, the engine refuses"
    except RequestError as error:
        assert str(characters) in str(error) and str(MOST) in str(error)
    assert sum(seen) < 100_000


def test_what_fits_is_never_refused(directory: Path) -> None:
    chance = random.Random(3)
    plain, bounded = TextCodec(directory), BoundedCodec(directory, most_tokens=MOST)
    words = " ".join(CORPUS).split(" ")
    fitting = 0
    for _ in range(300):
        text = chance.choice(("", " ")).join(
            chance.choices([*words, "x" * 90, " " * 40, "\n"], k=chance.randint(0, 60))
        )
        ids = plain.encode(text)
        if len(ids) <= MOST:
            fitting += 1
            assert bounded.encode(text) == ids
    assert fitting > 30


def test_without_a_limit_nothing_is_refused(directory: Path) -> None:
    text = "one two " * 2000
    assert BoundedCodec(directory, most_tokens=0).encode(text) == TextCodec(directory).encode(text)
