"""The ways to compute the rows of an answer, and which of them give other bits than token by token."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.runner import Runner, SequenceInput

BATCH = 8
WAYS = ("chain", "tree", "batch", "beside a prompt", "prompts together", "after reuse")
_CHAIN = 8
_CHUNKS = (128, 256)  # how prompts are read the first time, and the second
_TOGETHER = 256  # tokens of several prompts that are read in a step
_BESIDE = 64  # tokens of a prompt that are read in a step beside an answer's
_DECODED_ROWS = 6  # decoded behind a prompt that was read in another way
_SETS = 3  # of blocks: of the plain rows, of the other ways, of what is scratch


@dataclass(slots=True)
class Answer:
    """A prompt, the tokens that follow it, and a hash of the logits that each of them was chosen from."""

    prompt: Sequence[int]
    slot: int
    tokens: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)

    @property
    def text(self) -> list[int]:
        return [*self.prompt, *self.tokens]

    def digest(self) -> str:
        """Of all logits: what may be compared between processes."""
        return hashlib.blake2b(b"".join(self.hashes), digest_size=8).hexdigest()


class Ways:
    """Up to `BATCH` prompts at a time on a runner.

    Args:
        runner: the target; its cache must hold `blocks(longest)` blocks.
        longest: most tokens of a prompt and its answer.
        length: tokens of an answer.
    """

    def __init__(self, runner: Runner, longest: int, length: int) -> None:
        self._runner, self._length = runner, length
        self._each = math.ceil(longest / runner.block_size)

    @staticmethod
    def blocks(longest: int, block_size: int) -> int:
        """Cache blocks that are needed."""
        return (_SETS * BATCH) * math.ceil(longest / block_size)

    def answers(self, prompts: Sequence[Sequence[int]]) -> list[Answer]:
        """Token by token, one after the other."""
        found = [Answer(prompt, slot) for slot, prompt in enumerate(prompts)]
        for answer in found:
            row = self._read(answer, 0, _CHUNKS[0])
            while True:
                answer.hashes.append(_hash(row))
                answer.tokens.append(int(row.argmax()))
                if len(answer.tokens) == self._length:
                    break
                past = len(answer.text) - 1
                row = self._runner.forward(
                    [SequenceInput(answer.tokens[-1:], past, self._blocks(answer, 0))]
                )[0]
        return found

    def differing(self, answers: Sequence[Answer]) -> dict[str, list[tuple[int, int]]]:
        """By way: (answer, token) of each whose logits have other bits."""
        for answer in answers:
            self._read(answer, 1, _CHUNKS[1])
        computed: dict[str, Callable[[], Iterator[tuple[Answer, int, NDArray[np.float32]]]]] = {
            "chain": lambda: self._each_of(answers, self._chain),
            "tree": lambda: self._each_of(answers, self._tree),
            "batch": lambda: self._batch(answers),
            "beside a prompt": lambda: self._each_of(answers, self._beside),
            "prompts together": lambda: self._together(answers),
            "after reuse": lambda: self._each_of(answers, self._reuse),
        }
        return {
            way: [
                (answer.slot, token)
                for answer, token, row in computed[way]()
                if _hash(row) != answer.hashes[token]
            ]
            for way in WAYS
        }

    def _each_of(
        self,
        answers: Sequence[Answer],
        way: Callable[[Answer], Iterator[tuple[int, NDArray[np.float32]]]],
    ) -> Iterator[tuple[Answer, int, NDArray[np.float32]]]:
        for answer in answers:
            for token, row in way(answer):
                yield answer, token, row

    def _chain(self, answer: Answer) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Drafts of seven tokens; a wrong one is verified, and rejected, before every right one."""
        for first in range(1, self._length, _CHAIN):
            past, tokens = self._at(answer, first, _CHAIN)
            blocks = self._blocks(answer, 1)
            self._runner.forward([SequenceInput([tokens[0], *self._wrong(tokens)], past, blocks)])
            logits = self._runner.forward([SequenceInput(tokens, past, blocks)])
            yield from enumerate(logits, first)

    def _tree(self, answer: Answer) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each right token has a wrong sibling before it, and that a child of its own; the path is kept."""
        first = 1
        while first < self._length:
            past, path = self._at(answer, first, 3)
            tokens, parents, kept = [path[0]], [-1], [0]
            for token in path[1:]:
                wrong = (token + 1) % self._runner.vocab_size
                above = kept[-1]
                tokens += [wrong, token, wrong]
                parents += [above, above, len(tokens) - 3]
                kept.append(len(tokens) - 2)
            blocks = self._blocks(answer, 1)
            logits = self._runner.forward([SequenceInput(tokens, past, blocks, parents=parents)])
            yield from ((first + place, logits[node]) for place, node in enumerate(kept))
            self._runner.commit(0, kept)
            first += len(path)

    def _batch(self, answers: Sequence[Answer]) -> Iterator[tuple[Answer, int, NDArray[np.float32]]]:
        """All of them in each step, with drafts of other lengths."""
        places = [1] * len(answers)
        step = 0
        while any(place < self._length for place in places):
            going = [answer for answer, place in zip(answers, places, strict=True) if place < self._length]
            inputs = []
            for answer in going:
                past, tokens = self._at(answer, places[answer.slot], 1 + (step + answer.slot) % 4)
                inputs.append(SequenceInput(tokens, past, self._blocks(answer, 1)))
            logits = self._runner.forward(inputs)
            row = 0
            for answer, item in zip(going, inputs, strict=True):
                for _ in item.tokens:
                    yield answer, places[answer.slot], logits[row]
                    places[answer.slot] += 1
                    row += 1
            step += 1

    def _beside(self, answer: Answer) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Drafts of seven tokens in steps that read a part of a prompt, before or after them."""
        read = 0
        for turn, first in enumerate(range(1, self._length, _CHAIN)):
            past, tokens = self._at(answer, first, _CHAIN)
            own = SequenceInput(tokens, past, self._blocks(answer, 1))
            part = answer.prompt[read : read + _BESIDE]
            other = SequenceInput(part, read, self._blocks(answer, 2), is_prompt=True, logits_from=len(part))
            logits = self._runner.forward([own, other] if turn % 2 else [other, own])
            yield from enumerate(logits, first)
            read = read + len(part) if read + len(part) < len(answer.prompt) else 0

    def _together(self, answers: Sequence[Answer]) -> Iterator[tuple[Answer, int, NDArray[np.float32]]]:
        """All prompts, as many of them in a step as there is room for, and the first tokens decoded behind them."""
        read = [0] * len(answers)
        while any(begin < len(answer.prompt) for answer, begin in zip(answers, read, strict=True)):
            going, inputs, room = [], [], _TOGETHER
            for answer in answers:
                begin = read[answer.slot]
                rest = len(answer.prompt) - begin
                # No part is a single token.
                size = rest if rest <= room else room - (rest == room + 1)
                if not rest or size < 2:
                    continue
                part, room = answer.prompt[begin : begin + size], room - size
                wanted = size - (size == rest)
                inputs.append(
                    SequenceInput(part, begin, self._blocks(answer, 2), is_prompt=True, logits_from=wanted)
                )
                read[answer.slot] += size
                going += [answer] * (size == rest)
            yield from (
                (answer, 0, row) for answer, row in zip(going, self._runner.forward(inputs), strict=True)
            )
        for answer in answers:
            for token in range(1, min(self._length, _DECODED_ROWS)):
                past, tokens = self._at(answer, token, 1)
                yield (
                    answer,
                    token,
                    self._runner.forward([SequenceInput(tokens, past, self._blocks(answer, 2))])[0],
                )

    def _reuse(self, answer: Answer) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Whole blocks of the prompt as the other ways left them, the rest of it read anew."""
        size = self._runner.block_size
        whole = max(0, len(answer.prompt) - 2) // size
        blocks = [*self._blocks(answer, 1)[:whole], *self._blocks(answer, 2)[whole:]]
        rest = answer.prompt[whole * size :]
        logits = self._runner.forward(
            [SequenceInput(rest, whole * size, blocks, is_prompt=True, logits_from=len(rest) - 1)]
        )
        yield 0, logits[0]
        for token in range(1, min(self._length, _DECODED_ROWS)):
            past, tokens = self._at(answer, token, 1)
            yield token, self._runner.forward([SequenceInput(tokens, past, blocks)])[0]

    def _read(self, answer: Answer, which: int, chunk: int) -> NDArray[np.float32]:
        """The prompt into a set of blocks; logits of its last token."""
        logits = np.zeros((0, 0), np.float32)
        begin = 0
        while begin < len(answer.prompt):
            # Nobody reads a single token of a longer prompt: it would be computed as a decoded one.
            end = begin + chunk if len(answer.prompt) > begin + chunk + 1 else len(answer.prompt)
            part = answer.prompt[begin:end]
            wanted = len(part) - 1 if begin + len(part) == len(answer.prompt) else len(part)
            logits = self._runner.forward(
                [SequenceInput(part, begin, self._blocks(answer, which), is_prompt=True, logits_from=wanted)]
            )
            begin = end
        row: NDArray[np.float32] = logits[-1]
        return row

    def _at(self, answer: Answer, token: int, most: int) -> tuple[int, list[int]]:
        """Rows before, and the tokens to be run, for the logits of answer tokens from this one on."""
        past = len(answer.prompt) + token - 1
        return past, answer.tokens[token - 1 : min(token - 1 + most, self._length - 1)]

    def _wrong(self, tokens: Sequence[int]) -> list[int]:
        return [(token + 7) % self._runner.vocab_size for token in tokens[1:]]

    def _blocks(self, answer: Answer, which: int) -> range:
        first = (which * BATCH + answer.slot) * self._each
        return range(first, first + self._each)


def _hash(row: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=8).digest()
