"""Attention of PyTorch's steps, and what it should be, row by row in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.runner import BLOCK_SIZE, SequenceInput

NAME = "key_cache.0"
FILLED = 60  # blocks of the cache that requests may lie in


@dataclass(frozen=True)
class Shape:
    """Of attention: key heads, query heads of each, size of a head, rows of a sliding window or 0."""

    heads: int = 2
    share: int = 3
    width: int = 16
    window: int = 0

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "kv_heads": self.heads,
            "head_dim": self.width,
            "scale": self.width**-0.5,
            "sliding_window": self.window,
        }


class Attended:
    """Random rows of a cache and of a step's tokens, and what attention makes of them.

    Rows that nobody has written, or may read, are NaN.
    """

    def __init__(self, batch: Sequence[SequenceInput], shape: Shape, seed: int = 0) -> None:
        import torch

        from engine.torch_attention import PagedCaches

        self.batch, self.shape = batch, shape
        random = np.random.default_rng(seed)
        tokens = sum(len(item.tokens) for item in batch)
        self.queries = random.normal(size=(tokens, shape.heads * shape.share, shape.width)).astype(np.float32)
        self.keys, self.values = random.normal(size=(2, tokens, shape.heads, shape.width)).astype(np.float32)
        self.cache = random.normal(size=(2, FILLED * BLOCK_SIZE, shape.heads, shape.width)).astype(np.float32)
        held = {
            item.blocks[row // BLOCK_SIZE] * BLOCK_SIZE + row % BLOCK_SIZE
            for item in batch
            for row in range(item.past)
        }
        self.cache[:, [row for row in range(FILLED * BLOCK_SIZE) if row not in held]] = np.nan
        self.caches = PagedCaches(
            [NAME], FILLED, (shape.heads, shape.width), torch.device("cpu"), torch.float32
        )
        self.caches.rows[0, :, : FILLED * BLOCK_SIZE] = torch.from_numpy(self.cache)

    def found(self) -> NDArray[np.float32]:
        """[tokens, query heads, width] of PyTorch's attention."""
        import torch

        from engine.torch_attention import StepAttention
        from engine.torch_steps import Step

        step = Step.of(self.batch, None, filler_row=self.caches.filler_row)
        inputs = {name: torch.from_numpy(values) for name, values in step.inputs.items()}
        size = len(step.inputs["input_ids"])
        new = [
            torch.from_numpy(np.pad(part.reshape(len(part), -1), ((0, size - len(part)), (0, 0))))
            for part in (self.queries, self.keys, self.values)
        ]
        attention = StepAttention(self.caches, inputs, step.groups)
        mixed = attention(self.shape.attributes, new, NAME)
        rows: NDArray[np.float32] = mixed.numpy()[: step.tokens].reshape(self.queries.shape)
        return rows

    def expected(self) -> NDArray[np.float64]:
        """The same, of the rows that each token sees by the definition."""
        found, first = [], 0
        for item in self.batch:
            for token in range(len(item.tokens)):
                path = _path(item.parents, token)
                rows = np.arange(item.past)
                places = np.array(item.blocks)[rows // BLOCK_SIZE] * BLOCK_SIZE + rows % BLOCK_SIZE
                keys, values = (
                    np.concatenate([cache[places], new[[first + each for each in path]]]).astype(np.float64)
                    for cache, new in zip(self.cache, (self.keys, self.values), strict=True)
                )
                if self.shape.window:
                    keys, values = keys[-self.shape.window :], values[-self.shape.window :]
                found.append(self._row(self.queries[first + token].astype(np.float64), keys, values))
            first += len(item.tokens)
        return np.stack(found)

    def _row(
        self, queries: NDArray[np.float64], keys: NDArray[np.float64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        grouped = queries.reshape(self.shape.heads, self.shape.share, self.shape.width)
        scores = np.einsum("hgd,shd->hgs", grouped, keys) * self.shape.width**-0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hgs,shd->hgd", shares / shares.sum(-1, keepdims=True), values)
        row: NDArray[np.float64] = mixed.reshape(queries.shape)
        return row


def _path(parents: Sequence[int] | None, token: int) -> list[int]:
    """From the root down to a token of a tree or a chain."""
    path = [token]
    while path[0]:
        path.insert(0, path[0] - 1 if parents is None else parents[path[0]])
    return path
