"""How many rows of a step a network computes at once, so that a row's bits do not show what else is in the step.

Libraries of matrix products choose a kernel by the number of rows, and kernels round differently: oneDNN's for int8
weights on a processor with AVX2 and without VNNI give other bits from 84 rows on (SmolLM2-135M, OpenVINO 2026.4).
Which do so is nowhere promised. So a network that is opened is asked: one row is computed among more and more others,
and steps are cut into parts of as many as leave its bits alone.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.runner import SHORTEST_CHUNK, SequenceInput

MOST_ROWS = 257  # a chunk of a prompt where nobody decodes, and a row of padding
_SIZES = (24, 64, 128, MOST_ROWS)
_STEP = 16  # to which a change of bits is narrowed down

Cut = list[tuple[int, SequenceInput]]
"""What is computed at once: inputs, each with its index in the step."""


def most_rows(
    first_row: Callable[[int], NDArray[np.float32]], buckets: Iterable[int], room: int = MOST_ROWS
) -> int:
    """The most rows among which a row has the bits that it has among the fewest.

    Args:
        first_row: the first row of the output of a step of n equal rows, by n.
        buckets: numbers of rows for which the network is compiled, and the fewest that it is given.
        room: rows that the cache holds.
    """
    first, *others = sorted({*buckets, *(min(size, room) for size in _SIZES)})
    expected = first_row(first)

    def alike(size: int) -> bool:
        return np.array_equal(first_row(size), expected, equal_nan=True)

    known = first
    for size in others:
        if not alike(size):
            narrower = range(known - known % _STEP + _STEP, size, _STEP)
            return max([known, *itertools.takewhile(alike, narrower)])
        known = size
    return known


def cut(batch: Sequence[SequenceInput], most: int) -> list[Cut]:
    """A step in parts of at most `most` rows, or SHORTEST_CHUNK, in its order.

    Prompts are cut anywhere, what decodes only where it is longer than that; trees, and what is weighed, stay whole.
    """
    most = max(most, SHORTEST_CHUNK)
    parts: list[Cut] = [[]]
    room = most
    for index, item in enumerate(batch):
        chain = item.parents is None and not item.weighed
        while len(item.tokens) > room and chain and (item.is_prompt or len(item.tokens) > most):
            # Neither part is a single row, which may be computed as a decoded one.
            size = room - (len(item.tokens) - room == 1)
            if size > 1:
                head, item = _divided(item, size)
                parts[-1].append((index, head))
            parts.append([])
            room = most
        if len(item.tokens) > room and parts[-1]:
            parts.append([])
            room = most
        parts[-1].append((index, item))
        room -= len(item.tokens)
    return parts


def _divided(item: SequenceInput, size: int) -> tuple[SequenceInput, SequenceInput]:
    """The first `size` tokens of a chain, and the others."""
    head = replace(item, tokens=item.tokens[:size], logits_from=min(item.logits_from, size))
    rest = replace(
        item,
        tokens=item.tokens[size:],
        past=item.past + size,
        logits_from=max(0, item.logits_from - size),
        position=None if item.position is None else item.position + size,
    )
    return head, rest
