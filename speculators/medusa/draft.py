"""Drafting with Medusa heads: one call for the whole batch gives the guesses of all levels.

Heads do not see each other's guesses, so the nodes of a level have the same guesses below them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows, Graph
from speculators.growth import TreeGrowth, TreeShape, max_branches
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import TokenTree

_LAYERS = (-1,)


class MedusaDrafter(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        heads: all heads compiled; input ``state``, outputs ``candidates`` and ``log_probs``, ``[heads, rows, k]``.
        shape: the tree; at most as deep as there are heads.
    """

    name = "medusa"

    def __init__(self, heads: Graph, shape: TreeShape) -> None:
        self.max_draft_length = shape.total
        self.requirements = self.required(shape, _LAYERS)
        self.ends_drafts = shape.least > -math.inf
        self._heads, self._shape = heads, shape
        self._last: Requests[list[NDArray[np.float32]]] = Requests(self.name)

    @staticmethod
    def required(shape: TreeShape, hidden_layers: tuple[int, ...]) -> Requirements:
        """What a drafter of such trees needs."""
        return Requirements(hidden_layers=hidden_layers, max_branches=max_branches(shape))

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._last.start(request_id, [])

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        states = [self._last[request_id] for request_id in request_ids]
        going = [index for index, growth in enumerate(growths) if growth.frontier and states[index]]
        if going:
            found = self._heads({"state": np.stack([states[index][0] for index in going])})
            for row, index in enumerate(going):
                self._grow(growths[index], found["candidates"][:, row], found["log_probs"][:, row])
        return [growth.tree() for growth in growths]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._last[request_id][:] = [outcome.hidden[-1][outcome.kept[-1]].copy()]

    def finish(self, request_id: int) -> None:
        self._last.finish(request_id)

    @staticmethod
    def _grow(growth: TreeGrowth, candidates: NDArray[np.int64], log_probs: NDArray[np.float32]) -> None:
        """Levels of one request from guesses [heads, k]."""
        for guesses, scores in zip(candidates, log_probs, strict=True):
            if not growth.frontier:
                break
            nodes = len(growth.frontier)
            growth.grow(np.tile(guesses, (nodes, 1)), np.tile(scores, (nodes, 1)))
