"""Where the rows of a step's trees lie in the cache, for attention that sees a row's ancestors wherever they lie.

A tree's rows lie in the order of its tokens where a chain's would; those for which a request has no blocks left, in
blocks for the step alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from engine.runner import BLOCK_SIZE, SequenceInput

Place = tuple[int, int]
"""A cache row: its block, and its offset in it."""


def with_room(batch: Sequence[SequenceInput], private_blocks: Iterable[int]) -> list[SequenceInput]:
    """The inputs of a step, with private blocks for the trees that have more rows than room.

    Of an iterator as many are taken as are needed.

    Raises:
        ValueError: there are too few.
    """
    private = iter(private_blocks)
    placed = []
    for item in batch:
        missing = -(-(item.past + len(item.tokens)) // BLOCK_SIZE) - len(item.blocks)
        if missing > 0 and item.parents is not None:
            more = list(islice(private, missing))
            if len(more) < missing:
                raise ValueError("trees need more cache blocks than there are (`branch_blocks`)")
            item = replace(item, blocks=[*item.blocks, *more])
        placed.append(item)
    return placed


def moves(item: SequenceInput, kept: Sequence[int]) -> list[tuple[Place, Place]]:
    """Rows to be moved, (from, to), for the tokens `kept` of an input to be the rows `past ..` of its request."""
    return [
        (_place(item, item.past + token), _place(item, item.past + row))
        for row, token in enumerate(kept)
        if token != row
    ]


def _place(item: SequenceInput, row: int) -> Place:
    return item.blocks[row // BLOCK_SIZE], row % BLOCK_SIZE
