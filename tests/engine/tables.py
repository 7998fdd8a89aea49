"""A target and drafters that are tables: exact on every machine, and thousands of steps a second.

The next token is, three times of four, what a table says of the last two tokens; otherwise it depends on the whole
context, as the cache blocks of the request hold it, so a row that is missing, misplaced or of another request shows.
Drafters know the table. Everything is made of small integers, so that no sum can come out otherwise elsewhere.

Example::

    runner = TableRunner(hidden_layers=(-1,))
    engine = make_engine(runner, MedusaDrafter(TableHeads(4), Likeliest.chain(4)))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.runner import BLOCK_SIZE, BestLogits, SequenceInput
from speculators.graphs import Arrays, CachedInput

VOCABULARY = 48
WIDTH = 4  # of a hidden state: its token, the one before, eight bits of the context, its layer
GUESSES = 10
_MASK = (1 << 64) - 1


def mixed(*values: int) -> int:
    """A 64-bit hash (splitmix64)."""
    state = 0
    for value in values:
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


_FOLLOWS = [[mixed(before, token) % VOCABULARY for token in range(VOCABULARY)] for before in range(2)]
_NOISE = np.array(
    [[(mixed(7, row, token) >> 60) / 8 for token in range(VOCABULARY)] for row in range(256)], np.float32
)


def following(before: int, token: int) -> int:
    """What mostly comes after two tokens."""
    return _FOLLOWS[before % 2][token]


class Rows:
    """Cache rows of one network: the token of each, and a hash of what else it was made of."""

    def __init__(self, num_blocks: int) -> None:
        self.tokens = np.zeros((num_blocks, BLOCK_SIZE), np.int64)
        self.hashes = np.zeros((num_blocks, BLOCK_SIZE), np.uint64)

    def before(self, blocks: Sequence[int], past: int) -> tuple[int, int]:
        """The sum of the hashes of the first rows of a list of blocks, and the token of the last of them."""
        if not past:
            return 0, 0
        held = list(blocks[: -(-past // BLOCK_SIZE)])
        total = self.hashes[held].ravel()[:past].sum(dtype=np.uint64)
        last = past - 1
        return int(total), int(self.tokens[held[last // BLOCK_SIZE], last % BLOCK_SIZE])

    def write(self, blocks: Sequence[int], row: int, token: int, value: int) -> None:
        place = blocks[row // BLOCK_SIZE], row % BLOCK_SIZE
        self.tokens[place], self.hashes[place] = token, value


class TableRunner:
    """A `Runner`; `batches` are the inputs of all steps.

    Args:
        num_blocks: of its cache.
        hidden_layers: see `hidden`.
        one_kind_of_rows, gives_best: see `engine.runner.Runner`.
    """

    most_weighed = 16

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        hidden_layers: Sequence[int] = (),
        one_kind_of_rows: bool = True,
        gives_best: bool = False,
    ) -> None:
        self.vocab_size, self.block_size, self.num_blocks = VOCABULARY, BLOCK_SIZE, num_blocks
        self.max_sequence_length = num_blocks * BLOCK_SIZE
        self.one_kind_of_rows, self.gives_best = one_kind_of_rows, gives_best
        self.hidden_layers = tuple(hidden_layers)
        self.batches: list[list[SequenceInput]] = []
        self._rows = Rows(num_blocks)
        self._hidden: list[list[list[float]]] = []

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        self.batches.append(list(batch))
        self._hidden = []
        return np.stack(
            [row for item in batch for row in self._run(item)] or [np.zeros(VOCABULARY, np.float32)]
        )

    def forward_best(self, batch: Sequence[SequenceInput]) -> BestLogits:
        return BestLogits.of(self.forward(batch))

    def hidden(self) -> NDArray[np.float32]:
        return np.array(self._hidden, np.float32).reshape(len(self._hidden), -1, WIDTH)

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """What a hash says of the rows that a block holds before the step."""
        item = self.batches[-1][index]
        assert item.weighed and len(item.tokens) <= self.most_weighed
        held = -(-item.past // BLOCK_SIZE)
        weights = np.zeros(len(item.blocks), np.float32)
        for place, block in enumerate(item.blocks[:held]):
            weights[place] = 1 + (mixed(int(self._rows.hashes[block, 0])) & 255)
        return weights

    def commit(self, index: int, kept: Sequence[int]) -> None:
        item = self.batches[-1][index]
        for row, place in enumerate(kept):
            self._write(item, item.past + row, place)

    def _run(self, item: SequenceInput) -> list[NDArray[np.float32]]:
        base, last = self._rows.before(item.blocks, item.past)
        sums: list[int] = []
        logits = []
        for place, (token, position) in enumerate(zip(item.tokens, item.positions, strict=True)):
            parent = place - 1 if item.parents is None else (item.parents[place] if place else -1)
            total = (base if parent < 0 else sums[parent]) + mixed(token, position) & _MASK
            before = last if parent < 0 else item.tokens[parent]
            sums.append(total)
            bits = mixed(total)
            self._hidden.append([[token, before, bits & 255, layer] for layer in self.hidden_layers])
            if item.parents is None:
                self._write(item, item.past + place, place)
            if place >= item.logits_from:
                row = _NOISE[bits & 255].copy()
                if bits >> 62:
                    row[following(before, token)] += 4
                logits.append(row)
        return logits

    def _write(self, item: SequenceInput, row: int, place: int) -> None:
        token, position = item.tokens[place], item.positions[place]
        self._rows.write(item.blocks, row, token, mixed(token, position))


def _guesses(before: int, token: int, bits: int) -> tuple[list[int], list[float]]:
    """Ranked guesses, mostly with the right one first, and their scores, multiples of 1/8."""
    first = following(before, token) if bits % 8 else bits // 8 % VOCABULARY
    if bits % 8 == 1:
        first = (first + 1) % VOCABULARY
    others = [(first + 1 + (bits >> 3) % 5 + 3 * rank) % VOCABULARY for rank in range(GUESSES - 1)]
    if bits % 8 == 1:
        others[0] = following(before, token)
    top = (bits >> 8) % 12 / 8
    return [first, *others], [-top, *(-(top + 1 + rank / 4) for rank in range(GUESSES - 1))]


class TableDrafter:
    """A drafter's network with a KV cache: EAGLE's, which reads hidden states, or a draft model's."""

    def __init__(self, *, num_blocks: int = 64) -> None:
        self._rows = Rows(num_blocks)
        self.calls: list[int] = []
        """Tokens of each call."""

    def run(self, batch: Sequence[CachedInput]) -> Arrays:
        self.calls.append(sum(len(item.tokens) for item in batch))
        found: dict[str, list[Any]] = {"candidates": [], "log_probs": [], "next_hidden": []}
        for item in batch:
            self._run(item, found)
        return {
            "candidates": np.array(found["candidates"], np.int64).reshape(-1, GUESSES),
            "log_probs": np.array(found["log_probs"], np.float32).reshape(-1, GUESSES),
            "next_hidden": np.array(found["next_hidden"], np.float32).reshape(-1, WIDTH),
        }

    def _run(self, item: CachedInput, found: dict[str, list[Any]]) -> None:
        base, last = self._rows.before(item.blocks, item.past)
        sums: list[int] = []
        for place, token in enumerate(item.tokens):
            parent = place - 1 if item.parents is None else (item.parents[place] if place else -1)
            seen = () if item.hidden is None else [int(value) for value in item.hidden[place]]
            depth = (
                item.past + place if item.parents is None else item.past + len(_above(item.parents, place))
            )
            value = mixed(token, depth, *seen)
            total = (base if parent < 0 else sums[parent]) + value & _MASK
            sums.append(total)
            if item.parents is None or place == 0:
                self._rows.write(item.blocks, item.past + place, token, value)
            if place >= item.outputs_from:
                before = seen[0] if seen else (last if parent < 0 else item.tokens[parent])
                bits = mixed(total)
                guesses, scores = _guesses(before, token, bits)
                found["candidates"].append(guesses)
                found["log_probs"].append(scores)
                found["next_hidden"].append([token, before, bits & 255, 9])


def _above(parents: Sequence[int], place: int) -> list[int]:
    above = []
    while place:
        place = parents[place]
        above.append(place)
    return above


def fusion(inputs: Arrays) -> Arrays:
    """EAGLE-3's: one hidden state of several."""
    parts = inputs["features"].reshape(len(inputs["features"]), -1, WIDTH)
    fused = parts[:, 0].copy()
    fused[:, 2] = parts[:, :, 2].sum(axis=1) + parts[:, :, 3].sum(axis=1)
    return {"hidden": fused}


def masked_fusion(inputs: Arrays) -> Arrays:
    """P-EAGLE's: the same, and behind them what stands for it at a mask."""
    return {"hidden": np.concatenate([fusion(inputs)["hidden"], np.full((1, WIDTH), 5, np.float32)])}


class TableHeads:
    """Medusa's heads."""

    def __init__(self, heads: int) -> None:
        self._heads = heads

    def __call__(self, inputs: Arrays) -> Arrays:
        rows = [self._row(state) for state in inputs["state"].astype(int).tolist()]
        guesses = np.array([[level[0] for level in row] for row in rows], np.int64)
        scores = np.array([[level[1] for level in row] for row in rows], np.float32)
        return {"candidates": guesses.swapaxes(0, 1), "log_probs": scores.swapaxes(0, 1)}

    def _row(self, state: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        before, token = state[0], following(state[1], state[0])
        levels = []
        for head in range(self._heads):
            levels.append(_guesses(before, token, mixed(head, *state)))
            before, token = token, following(before, token)
        return levels


def mlp_stage(inputs: Arrays) -> Arrays:
    """A stage of an MLP speculator."""
    states, tokens = inputs["state"].astype(int).tolist(), inputs["tokens"].tolist()
    found = [
        _guesses(state[0], token, mixed(token, *state)) for state, token in zip(states, tokens, strict=True)
    ]
    pairs = zip(states, tokens, strict=True)
    return {
        "candidates": np.array([guesses for guesses, _ in found], np.int64),
        "log_probs": np.array([scores for _, scores in found], np.float32),
        "next_state": np.array([[token, state[0], state[2], 9] for state, token in pairs], np.float32),
    }
