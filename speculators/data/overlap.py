"""Keeps the prompts that results are measured on out of training.

A text is refused if its words equal those of a held-out prompt, or if the two share 13 consecutive words (the overlap
rule of the GPT-3 paper, arXiv 2005.14165, appendix C). Words are compared without case and punctuation, so a prompt
that was copied and touched up is found, too. A held-out prompt of 8 to 12 words is found wherever it occurs as a whole.

What is held out is kept as 64-bit hashes. Those of the Spec-Bench prompts that the kit is measured on (240 of 480,
https://github.com/hemingkx/Spec-Bench) come with the kit, without the prompts: `spec_bench.npy`.

Example::

    held_out = HeldOut([Path("mine.jsonl")])
    held_out.overlap("What is the capital of France?")     # None: may be trained on
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from speculators.data.errors import DataError

NGRAM = 13
SPEC_BENCH = Path(__file__).with_name("spec_bench.npy")

_SHORTEST = 8
_WORD = re.compile(r"\w+")
_WHOLE = "whole"

Words = tuple[str, ...]


class HeldOut:
    """Prompts that must not enter training.

    Args:
        files: JSONL files with a list `turns` in each line, as Spec-Bench has it.
        hashes: files that `save` wrote.

    Raises:
        DataError: a file is missing, or a line is not such an object.
    """

    def __init__(self, files: Sequence[Path], hashes: Sequence[Path] = (SPEC_BENCH,)) -> None:
        self._hashes: set[int] = set()
        for path in files:
            for turn in _turns(path):
                self._hashes.update(_held_out_hashes(words_of(turn)))
        for path in hashes:
            try:
                self._hashes.update(np.load(path).tolist())
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: hashes of held-out prompts cannot be read: {error}") from None

    def overlap(self, text: str) -> str | None:
        """The shared words, if the text may not be trained on."""
        words = words_of(text)
        if _hash(_WHOLE, words) in self._hashes:
            return " ".join(words)
        for length in range(_SHORTEST, NGRAM + 1):
            for shared in _ngrams(words, length):
                if _hash(str(length), shared) in self._hashes:
                    return " ".join(shared)
        return None

    def save(self, path: Path) -> None:
        """Write the hashes, which tell nothing of the prompts, in NumPy's format.

        Raises:
            OSError: the file cannot be written.
        """
        np.save(path, np.array(sorted(self._hashes), dtype=np.uint64))


def words_of(text: str) -> Words:
    """The words of a text, lower case, without punctuation."""
    return tuple(_WORD.findall(text.lower()))


def _held_out_hashes(words: Words) -> Iterator[int]:
    yield _hash(_WHOLE, words)
    if len(words) >= _SHORTEST:
        length = min(len(words), NGRAM)
        yield from (_hash(str(length), part) for part in _ngrams(words, length))


def _hash(kind: str, words: Words) -> int:
    digest = hashlib.blake2b(" ".join((kind, *words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _ngrams(words: Words, length: int) -> Iterator[Words]:
    return (words[start : start + length] for start in range(len(words) - length + 1))


def _turns(path: Path) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: held-out prompts cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            turns = json.loads(line)["turns"]
            yield from (turn for turn in turns if isinstance(turn, str))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(f"{path}:{number}: expected an object with a list `turns`") from None
