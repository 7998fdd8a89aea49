"""A fast feed-forward tree over the output matrix of a drafter.

Its 2^d - 1 nodes are vectors; a hidden state h goes to the second child of a node n with probability sigmoid(n h).
Its 2^d leaves are blocks of equally many rows of the output matrix, the tokens that can be drafted. Of the likeliest
few leaves the rows are read, of the others not. Tokens are scored within those as the whole matrix would score them,
and how likely all others are is the tree's word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REFINEMENTS = 8


@dataclass(frozen=True)
class OutputTree:
    """See the module.

    Attributes:
        nodes: float32 ``[2^d - 1, H]``; the children of node i are 2i + 1 and 2i + 2.
        leaves: int64 ``[2^d, L]``, the rows of the output matrix in each leaf.
        read: leaves that are computed.
    """

    nodes: NDArray[np.float32]
    leaves: NDArray[np.int64]
    read: int


def path_signs(leaves: int) -> NDArray[np.float32]:
    """``[2^d, 2^d - 1]``: whether a leaf lies below the second child of a node (1), the first (-1), or neither (0)."""
    signs = np.zeros((leaves, leaves - 1), np.float32)
    for leaf in range(leaves):
        below = leaf + leaves  # counted from 1, the parent of a node is half of its number
        while below > 1:
            signs[leaf, below // 2 - 1] = 1 if below % 2 else -1
            below //= 2
    return signs


def balanced_leaves(rows: NDArray[np.float32], depth: int, seed: int = 0) -> NDArray[np.int64]:
    """Cut rows ``[W, H]`` in halves of like ones, again and again: ``[2^depth, W / 2^depth]``, their numbers.

    W is a multiple of 2^depth.
    """
    dice = np.random.default_rng(seed)
    parts = [np.arange(len(rows))]
    for _ in range(depth):
        parts = [half for part in parts for half in _halves(rows[part], part, dice)]
    return np.stack(parts)


def _halves(
    rows: NDArray[np.float32], numbers: NDArray[np.int64], dice: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Two clusters of one size: along the line between two rows at first, then between their means."""
    first, second = rows[dice.choice(len(rows), 2, replace=False)]
    half = len(rows) // 2
    for _ in range(_REFINEMENTS):
        order = np.argsort(rows @ (second - first), kind="stable")
        first, second = rows[order[:half]].mean(0), rows[order[half:]].mean(0)
    yield np.sort(numbers[order[:half]])
    yield np.sort(numbers[order[half:]])
