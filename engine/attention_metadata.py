"""How a step's tokens are given to the paged-attention kernel, so that their logits do not show it.

OpenVINO has one attention kernel for sequences of a single new token and another for longer ones, and they
round differently. So every decoded token, drafted ones included, is a sequence of its own that shares the cache
blocks of its request: the kernel writes all new rows before it reads any, hence a drafted token sees the ones
before it. Only prompts are sequences of several tokens. A third kernel splits the context over threads and adds up
what they found in another order; it serves steps that have fewer sequences than there are threads and no prompt.
Padding keeps it out: sequences of one row, of which attention alone knows.

A tree is cut into chains. The first goes on where the request's rows end; every other one leaves an earlier
chain at a node and has private blocks from the block of its first token on. Rows of the request that lie in that
block are copied there, and drafted ancestors that do get a query row once more, for the kernel to write them. So
every node sees its path, row after row, exactly as plain decoding would have it. Only attention pays for a token
with two query rows: the rest of the graph runs once for each.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.runner import SequenceInput

Place = tuple[int, int]
"""A cache row: its block, and its offset in it."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """Cache blocks of a path, and the row after its last token: the place of whoever goes on from there."""

    blocks: list[int]
    tip: int


class AttentionMetadata:
    """Collects the graph's inputs, shapes as `build.graph.target` declares them.

    Args:
        block_size: rows of a cache block.
        private_blocks: blocks for the branches of trees, taken from as far as they are needed; they hold nothing from
            one step to the next.
        padding_block: a block for the padding.

    Attributes:
        copies: blocks to be copied before the step, (from, to).
        padding: padding tokens in `tensors`, behind all others; each has a row of logits.
    """

    def __init__(self, block_size: int, private_blocks: Iterable[int], padding_block: int) -> None:
        self.copies: list[tuple[int, int]] = []
        self.padding = 0
        self._block_size = block_size
        self._private = iter(private_blocks)
        self._padding_block = padding_block
        self._tokens: list[int] = []
        self._positions: list[int] = []
        self._logit_rows: list[int] = []
        self._query_rows: list[int] = []  # the token of each query row
        self._output_rows: list[int] = []  # the query row whose output is each token's
        self._past: list[int] = []
        self._begins = [0]
        self._blocks: list[int] = []
        self._block_begins = [0]
        self._longest = 0
        self._places: list[tuple[SequenceInput, list[Place]]] = []

    def add(self, item: SequenceInput) -> None:
        """Add one request's part.

        Raises:
            ValueError: its tree needs more private blocks than are left.
        """
        first, length = len(self._tokens), len(item.tokens)
        self._logit_rows.extend(range(first + item.logits_from, first + length))
        self._tokens.extend(item.tokens)
        positions = item.positions
        self._positions.extend(positions)
        if item.parents is not None:
            self._add_tree(item, item.parents, [position - positions[0] for position in positions], first)
            return
        self._output_rows.extend(range(len(self._query_rows), len(self._query_rows) + length))
        self._query_rows.extend(range(first, first + length))
        if item.is_prompt:
            self._add_sequence(item.past, length, item.blocks)
        else:
            for offset in range(length):
                self._add_sequence(item.past + offset, 1, item.blocks)
        self._places.append((item, []))

    def moves(self, index: int, kept: Sequence[int]) -> list[tuple[Place, Place]]:
        """Rows to be moved, (from, to), for the tokens `kept` of an input to stand in its request's own rows."""
        item, places = self._places[index]
        if not places:
            return []
        own = (self._place(item.blocks, item.past + row) for row in range(len(kept)))
        pairs = ((places[token], target) for token, target in zip(kept, own, strict=True))
        return [(source, target) for source, target in pairs if source != target]

    def _add_tree(
        self, item: SequenceInput, parents: Sequence[int], depths: Sequence[int], first: int
    ) -> None:
        chains: list[_Chain] = []
        chain_of: list[int] = []
        places: list[Place] = []
        for token, parent in enumerate(parents):
            row = item.past + depths[token]
            if token == 0:
                chains.append(_Chain(list(item.blocks), row + 1))
                chain_of.append(0)
            elif chains[chain_of[parent]].tip == row:
                chain_of.append(chain_of[parent])
                chains[chain_of[parent]] = self._extended(chains[chain_of[parent]], row)
            else:
                ancestors = _path(parents, parent)
                chains.append(self._branch(item, chains[chain_of[parent]], ancestors, depths, first, row))
                chain_of.append(len(chains) - 1)
            blocks = chains[chain_of[token]].blocks
            places.append(self._place(blocks, row))
            self._output_rows.append(len(self._query_rows))
            self._query_rows.append(first + token)
            self._add_sequence(row, 1, blocks)
        self._places.append((item, places))

    def _branch(
        self,
        item: SequenceInput,
        trunk: _Chain,
        ancestors: Sequence[int],
        depths: Sequence[int],
        first: int,
        row: int,
    ) -> _Chain:
        """A chain that leaves `trunk` at `row`; ancestors in the row's block are written to its copy."""
        shared = row // self._block_size
        begin = shared * self._block_size
        blocks = [*trunk.blocks[:shared], self._take()]
        if begin < item.past:
            self.copies.append((item.blocks[shared], blocks[shared]))
        for ancestor in ancestors:
            if item.past + depths[ancestor] >= begin:
                self._query_rows.append(first + ancestor)
                self._add_sequence(item.past + depths[ancestor], 1, blocks)
        return _Chain(blocks, row + 1)

    def _extended(self, chain: _Chain, row: int) -> _Chain:
        more = [self._take()] if row // self._block_size == len(chain.blocks) else []
        return _Chain([*chain.blocks, *more], row + 1)

    def _take(self) -> int:
        block = next(self._private, None)
        if block is None:
            raise ValueError(
                "the step's token trees need more private cache blocks than the runner was given "
                "(`branch_blocks`)"
            )
        return block

    def _place(self, blocks: Sequence[int], row: int) -> Place:
        return blocks[row // self._block_size], row % self._block_size

    def _add_padding(self, token: int) -> None:
        self._query_rows.append(token)
        self._add_sequence(0, 1, [self._padding_block])

    def _add_sequence(self, past: int, length: int, blocks: Sequence[int]) -> None:
        self._past.append(past)
        self._longest = max(self._longest, past + length)
        self._begins.append(self._begins[-1] + length)
        self._blocks.extend(blocks[: -(-(past + length) // self._block_size)])
        self._block_begins.append(len(self._blocks))

    def tensors(self, rows: int, sequences: int) -> dict[str, NDArray[np.generic]]:
        """The inputs by name, for all that was added.

        Args:
            rows: tokens to be padded to, 1 or more; each one has a sequence of its own.
            sequences: sequences of attention to be padded to, unless one is a prompt's; to more than `rows` only
                for graphs that take `attention_rows`.
        """
        self.padding = max(0, rows - len(self._tokens))
        for _ in range(self.padding):
            self._output_rows.append(len(self._query_rows))
            self._logit_rows.append(len(self._tokens))
            self._add_padding(len(self._tokens))
            self._tokens.append(0)
            self._positions.append(0)
        prompts = self._begins[-1] > len(self._past)
        while len(self._past) < sequences and not prompts:
            self._add_padding(0)
        return {
            "input_ids": np.array(self._tokens, np.int64),
            "position_ids": np.array(self._positions, np.int64),
            "past_lens": np.array(self._past, np.int32),
            "subsequence_begins": np.array(self._begins, np.int32),
            "block_indices": np.array(self._blocks, np.int32),
            "block_indices_begins": np.array(self._block_begins, np.int32),
            "max_context_len": np.array(self._longest, np.int32),
            "attention_rows": np.array(self._query_rows, np.int64),
            "token_rows": np.array(self._output_rows, np.int64),
            "logit_rows": np.array(self._logit_rows, np.int64),
        }


def _path(parents: Sequence[int], token: int) -> list[int]:
    """Tokens from the root down to `token`."""
    path = [token]
    while path[-1]:
        path.append(parents[path[-1]])
    return path[::-1]
