"""Contexts of random rows, and their attention: by the kernel in any steps, and by float64 from the definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.native.library import CachePrecision, CacheShape, NativeCache, StepRequest

Rows = NDArray[np.float32]
BLOCKS, LAYERS, LAYER = 64, 2, 1
BLOCK_ROWS = 32


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, size, sliding window (0: none)."""

    queries: int
    keys: int
    size: int
    window: int = 0

    @property
    def scale(self) -> float:
        return float(self.size**-0.5)


SHAPES = [
    Heads(9, 3, 64),
    Heads(4, 4, 32, 9),
    Heads(8, 1, 80, 300),
    Heads(2, 1, 256),
    Heads(3, 1, 128),
    Heads(2, 2, 16),
]


class Context:
    """Random queries, keys and values, [rows, width] each."""

    def __init__(self, heads: Heads, rows: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.heads, self.rows = heads, rows
        widths = [heads.queries * heads.size, heads.keys * heads.size, heads.keys * heads.size]
        self.queries, self.keys, self.values = (
            random.standard_normal((rows, width)).astype(np.float32) for width in widths
        )
        self.blocks = random.permutation(BLOCKS)[: -(-rows // BLOCK_ROWS)].tolist()

    def cache(self, precision: CachePrecision) -> NativeCache:
        """One that this fits in, filled with what nobody may read."""
        cache = NativeCache(CacheShape(LAYERS, BLOCKS, self.heads.keys, self.heads.size, precision))
        cache.memory[:] = 0xFF
        return cache

    def step(
        self,
        cache: NativeCache,
        rows: Sequence[int],
        past: int,
        *,
        parents: Sequence[int] | None = None,
        weighed: bool = False,
        threads: int = 1,
    ) -> Rows:
        """Attention of these rows of the context, which come after `past` others."""
        cache.begin_step([StepRequest(len(rows), past, self.blocks, parents, weighed)])
        return cache.attend(
            LAYER,
            *(each[list(rows)] for each in (self.queries, self.keys, self.values)),
            heads=self.heads.queries,
            scale=self.heads.scale,
            window=self.heads.window,
            threads=threads,
        )

    def read(self, cache: NativeCache, sizes: Sequence[int], threads: int = 1) -> Rows:
        """Attention of all rows, in steps of these sizes."""
        found, past = [], 0
        for size in sizes:
            found.append(self.step(cache, range(past, past + size), past, threads=threads))
            past += size
        assert past == self.rows
        return np.concatenate(found)

    def weights(self, query: int, seen: Sequence[int]) -> NDArray[np.float64]:
        """[heads, rows seen], by the definition."""
        heads = self.heads
        queries = self.queries[query].reshape(heads.queries, heads.size).astype(np.float64)
        keys = self.keys[list(seen)].reshape(len(seen), heads.keys, heads.size).astype(np.float64)
        keys = np.repeat(keys, heads.queries // heads.keys, axis=1)
        scores = np.einsum("hd,rhd->hr", queries, keys) * heads.scale
        exponentials: NDArray[np.float64] = np.exp(scores - scores.max(axis=1, keepdims=True))
        exponentials /= exponentials.sum(axis=1, keepdims=True)
        return exponentials

    def expected(self, query: int, seen: Sequence[int]) -> NDArray[np.float64]:
        """Attention of a row over others, by the definition."""
        heads = self.heads
        seen = seen[-heads.window :] if heads.window else seen
        values = self.values[list(seen)].reshape(len(seen), heads.keys, heads.size).astype(np.float64)
        values = np.repeat(values, heads.queries // heads.keys, axis=1)
        outputs: NDArray[np.float64] = np.einsum("hr,rhd->hd", self.weights(query, seen), values)
        return outputs.ravel()


def path_to(parents: Sequence[int], row: int) -> list[int]:
    """Rows from the root of a tree to one of its rows."""
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path
