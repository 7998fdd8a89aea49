"""Paged networks as drafters call them: for many requests at once, each in the cache blocks of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backend import PagedNetwork
from engine.runner import BLOCK_SIZE, SequenceInput
from speculators.graphs import CachedInput


class BlockGraph:
    """A paged network with `num_blocks` cache blocks, which requests lie in; see `speculators.graphs.CachedGraph`."""

    def __init__(self, graph: PagedNetwork, outputs: Sequence[str], num_blocks: int) -> None:
        self._graph, self._outputs, self._num_blocks = graph, outputs, num_blocks

    def run(self, batch: Sequence[CachedInput]) -> dict[str, NDArray[Any]]:
        """One call for the whole batch, or several where one input writes to blocks of another.

        That happens when requests share the beginning of a text that the drafter has not read yet.
        """
        parts = _writing_apart(batch)
        if len(parts) == 1:
            return self._run_apart(batch)
        found = [{name: values.copy() for name, values in self._run_apart(part).items()} for part in parts]
        return {name: np.concatenate([part[name] for part in found]) for name in self._outputs}

    def _run_apart(self, batch: Sequence[CachedInput]) -> dict[str, NDArray[Any]]:
        hidden = [item.hidden for item in batch if item.hidden is not None]
        self._graph.forward(
            [self._sequence(item) for item in batch], np.concatenate(hidden) if hidden else None
        )
        return {name: self._graph.output(name) for name in self._outputs}

    def _sequence(self, item: CachedInput) -> SequenceInput:
        if max(item.blocks) >= self._num_blocks:
            raise ValueError(
                f"a request lies in block {max(item.blocks)}; the drafter has {self._num_blocks}"
            )
        return SequenceInput(
            item.tokens,
            item.past,
            item.blocks,
            is_prompt=item.parents is None,
            parents=item.parents,
            logits_from=item.outputs_from,
        )


def _writing_apart(batch: Sequence[CachedInput]) -> list[list[CachedInput]]:
    """Parts of a batch, in order, in each of which every block that is written to belongs to one input."""
    parts: list[list[CachedInput]] = [[]]
    named: set[int] = set()
    written: set[int] = set()
    for item in batch:
        own = set(item.blocks[item.past // BLOCK_SIZE : -(-(item.past + len(item.tokens)) // BLOCK_SIZE)])
        if own & named or written.intersection(item.blocks):
            parts.append([])
            named, written = set(), set()
        parts[-1].append(item)
        named.update(item.blocks)
        written |= own
    return parts
