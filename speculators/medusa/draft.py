"""Drafting with Medusa heads: one call for the whole batch gives the guesses of all levels.

Heads do not see each other's guesses, so the nodes of a level have the same guesses below them, and what others have
drafted changes nothing in what comes after it: going on with it costs nothing more, and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import DrafterRows, Graph
from speculators.growth import TreeGrowth, TreeShape, goes_on
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree
from speculators.tree_drafter import Guess, TreeDrafter


@dataclass(slots=True)
class _State:
    """Of a request: the hidden state that its newest token was emitted from, and the guesses made of it, if asked for.

    Guesses are tokens and log-probabilities, one a level.
    """

    state: NDArray[np.float32] | None = None
    guesses: list[Guess] | None = None


class MedusaDrafter(TreeDrafter[_State]):
    """The methods are those of ``Speculator``.

    Args:
        heads: all heads compiled; input ``state``, outputs ``candidates`` and ``log_probs``, ``[heads, rows, k]``.
        shape: the tree; at most as deep as there are heads.
    """

    def __init__(self, heads: Graph, shape: TreeShape) -> None:
        super().__init__("medusa", shape, hidden_layers=(-1,))
        self._heads = heads

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._states.start(request_id, _State())

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        states = [self._states[request_id].state for request_id in request_ids]
        known = [
            (growth, state)
            for growth, state in zip(growths, states, strict=True)
            if growth.frontier and state is not None
        ]
        if known:
            found = self._heads({"state": np.stack([state for _, state in known])})
            for row, (growth, _) in enumerate(known):
                self._grow(growth, found["candidates"][:, row], found["log_probs"][:, row])
        return [growth.tree() for growth in growths]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        last = self._states[request_id]
        last.state, last.guesses = outcome.hidden[-1][outcome.kept[-1]].copy(), None

    def _next(self, states: Sequence[_State], drafts: Sequence[TokenTree]) -> list[Guess | None]:
        going = [goes_on(self._shape, draft, 1) for draft in drafts]
        self._guess([last for last, able in zip(states, going, strict=True) if able])
        return [
            last.guesses[len(draft)] if able and last.guesses is not None else None
            for last, draft, able in zip(states, drafts, going, strict=True)
        ]

    def _guess(self, seen: Sequence[_State]) -> None:
        """The likeliest token of every level, for those who have none yet."""
        new = [(last, last.state) for last in seen if last.state is not None and last.guesses is None]
        if not new:
            return
        found = self._heads({"state": np.stack([state for _, state in new])})
        tokens, scores = found["candidates"][:, :, 0], np.minimum(found["log_probs"][:, :, 0], 0.0)
        for row, (last, _) in enumerate(new):
            last.guesses = list(zip(tokens[:, row].tolist(), scores[:, row].tolist(), strict=True))

    @staticmethod
    def _grow(growth: TreeGrowth, candidates: NDArray[np.int64], log_probs: NDArray[np.float32]) -> None:
        """Levels of one request from guesses [heads, k]."""
        for guesses, scores in zip(candidates, log_probs, strict=True):
            if not growth.frontier:
                break
            nodes = len(growth.frontier)
            growth.grow(np.tile(guesses, (nodes, 1)), np.tile(scores, (nodes, 1)))
