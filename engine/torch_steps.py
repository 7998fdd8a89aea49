"""A step's inputs as PyTorch takes them: its tokens, and where their rows of attention stand.

The new rows of a request stand together, for they share one pass over its cache. Requests with few of them are one
*group*, [requests, rows], padded to the longest; a part of a prompt is a group of its own. Which of a request's new
rows see each other is told by two numbers a row, as in a walk through the tree that numbers rows when it reaches them:
a row's descendants, and itself, are `begins` up to `ends`; it sees those rows among whose descendants it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.runner import BLOCK_SIZE, SequenceInput

Integers = NDArray[np.int64]

_FEW = 16  # rows of a request, beside trees: longer parts of prompts have too many lengths to capture a graph for each
_NOBODY = -1


@dataclass(frozen=True)
class Group:
    """Requests whose rows of attention stand in one array, [requests, rows].

    Attributes:
        tokens: which token of the step each row belongs to, [requests, rows].
        begins, ends: see above, [requests, rows]; -1 for padding.
        depths: rows that each sees of the new ones beside itself, [requests, rows].
        past, counts: rows of each request in the cache, and new ones, [requests].
        tables: its blocks, [requests, most blocks]; what is behind its last one is not read.
    """

    tokens: Integers
    begins: Integers
    ends: Integers
    depths: Integers
    past: Integers
    counts: Integers
    tables: Integers

    @classmethod
    def of(cls, items: Sequence[tuple[int, SequenceInput]], *, padded: bool) -> "Group":
        """The group of some inputs, each with the number of its first token."""
        rows, requests = max(len(item.tokens) for _, item in items), len(items)
        blocks = max(_blocks(item) for _, item in items)
        if padded:
            rows, requests, blocks = (rounded(size) for size in (rows, requests, blocks))
        found = cls(
            tokens=np.zeros((requests, rows), np.int64),
            begins=np.full((requests, rows), _NOBODY),
            ends=np.full((requests, rows), _NOBODY),
            depths=np.zeros((requests, rows), np.int64),
            past=np.zeros(requests, np.int64),
            counts=np.zeros(requests, np.int64),
            tables=np.zeros((requests, blocks), np.int64),
        )
        for place, (first, item) in enumerate(items):
            count = len(item.tokens)
            found.tokens[place, :count] = range(first, first + count)
            for values, of in zip(
                (found.begins, found.ends, found.depths), _walk(item.parents, count), strict=True
            ):
                values[place, :count] = of
            found.past[place], found.counts[place] = item.past, count
            found.tables[place, : _blocks(item)] = item.blocks[: _blocks(item)]
        return found

    def inputs(self, prefix: str) -> Iterator[tuple[str, Integers]]:
        """Its arrays by name."""
        for name in GROUP_INPUTS:
            yield f"{prefix}{name}", getattr(self, name)


GROUP_INPUTS = ("tokens", "begins", "ends", "depths", "past", "counts", "tables")


@dataclass(frozen=True)
class Step:
    """The inputs of a step.

    Attributes:
        inputs: of the network, with `places`, the cache row that each token is written to, and `token_rows`, where its
            row of attention stands, of all groups one after another; and of each group, its number before the name.
        groups: how many there are.
        padded: whether its arrays are padded, so that others have its shape.
        hidden: [tokens, H], of networks that read hidden states.
        tokens, wanted: how many, without padding, and of how many logits are wanted.
    """

    inputs: dict[str, Integers]
    groups: int
    padded: bool
    hidden: NDArray[np.float32] | None
    tokens: int
    wanted: int

    @classmethod
    def of(
        cls,
        batch: Sequence[SequenceInput],
        hidden: NDArray[np.float32] | None,
        *,
        padding_row: int,
    ) -> "Step":
        """The step of a batch.

        Args:
            batch: its inputs, whose blocks have room for their new rows.
            hidden: [tokens, H], of networks that read hidden states.
            padding_row: the cache row that padding is written to. Steps that hold no long part of a prompt are padded,
                so that few shapes occur.
        """
        numbered, first = [], 0
        for item in batch:
            numbered.append((first, item))
            first += len(item.tokens)
        few, long = ([each for each in numbered if _is_long(each[1]) == kind] for kind in (False, True))
        padded = not long
        groups = [Group.of(few, padded=padded)] if few else []
        groups += [Group.of([each], padded=False) for each in long]
        wanted = [
            row
            for first, item in numbered
            for row in range(first + item.logits_from, first + len(item.tokens))
        ]
        tokens = first
        size = rounded(max(2, tokens)) if padded else tokens  # a single row is multiplied by other kernels
        inputs = {
            "input_ids": _padded([token for item in batch for token in item.tokens], size),
            "position_ids": _padded([position for item in batch for position in item.positions], size),
            "places": _padded(np.concatenate([_places(item) for item in batch]), size, padding_row),
            "token_rows": _padded(_token_rows(groups, tokens), size),
            "logit_rows": _padded(wanted, rounded(max(2, len(wanted))) if padded and wanted else len(wanted)),
        }
        for number, group in enumerate(groups):
            inputs |= group.inputs(f"{number}.")
        if hidden is not None:
            hidden = np.pad(hidden, ((0, size - len(hidden)), (0, 0)))
        return cls(inputs, len(groups), padded, hidden, tokens, len(wanted))


def rounded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length() if size > 1 else size


def _is_long(item: SequenceInput) -> bool:
    return item.parents is None and len(item.tokens) > _FEW


def _blocks(item: SequenceInput) -> int:
    return -(-(item.past + len(item.tokens)) // BLOCK_SIZE)


def _places(item: SequenceInput) -> Integers:
    rows = np.arange(item.past, item.past + len(item.tokens))
    places: Integers = np.asarray(item.blocks, np.int64)[rows // BLOCK_SIZE] * BLOCK_SIZE + rows % BLOCK_SIZE
    return places


def _token_rows(groups: Sequence[Group], tokens: int) -> Integers:
    rows, before = np.zeros(tokens, np.int64), 0
    for group in groups:
        real = (group.begins != _NOBODY).ravel()
        rows[group.tokens.ravel()[real]] = before + np.flatnonzero(real)
        before += group.begins.size
    return rows


def _walk(parents: Sequence[int] | None, count: int) -> tuple[Any, Any, Any]:
    """Begins, ends and depths of a chain, or of a tree whose tokens follow their parents, the root first."""
    if parents is None:
        return range(count), count, range(count)
    sizes = [1] * count
    for token in range(count - 1, 0, -1):
        sizes[parents[token]] += sizes[token]
    begins, depths, free = [0] * count, [0] * count, [1] * count  # free: number of the next child's first row
    for token in range(1, count):
        parent = parents[token]
        begins[token], depths[token] = free[parent], depths[parent] + 1
        free[parent] += sizes[token]
        free[token] = begins[token] + 1
    return begins, [begin + size for begin, size in zip(begins, sizes, strict=True)], depths


def _padded(values: Any, size: int, value: int = 0) -> Integers:
    found = np.full(size, value, np.int64)
    found[: len(values)] = values
    return found
