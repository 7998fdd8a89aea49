"""Drafting with an MLP speculator: one call per stage for the whole batch, over all nodes that go on.

What others have drafted is read by its stages, one a token, so it goes on as far as there are stages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows, Graph
from speculators.growth import TreeGrowth, TreeShape, goes_on, max_branches
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import EMPTY, TokenTree

_LAYERS = (-1,)


@dataclass(slots=True)
class _Turn:
    """A chain that is drafted in turns: stages that have run, what comes next, and the state of the next stage."""

    stages: int
    guess: int
    score: float
    state: NDArray[np.float32]


@dataclass(slots=True)
class _Last:
    """The newest token, and the hidden state ``[1, E]`` after the final norm that it was emitted from.

    There is no state yet where the target has read nothing: all rows were in its cache.
    """

    token: int
    state: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    turn: _Turn | None = None


class MlpDrafter(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        stages: the compiled stages; inputs ``state`` and ``tokens``, outputs ``next_state``, ``candidates`` and
            ``log_probs``.
        shape: the tree; at most as deep as there are stages.
    """

    name = "mlp_speculator"

    def __init__(self, stages: Sequence[Graph], shape: TreeShape) -> None:
        self.max_draft_length = shape.total
        self.requirements = self.required(shape, _LAYERS)
        self.ends_drafts = shape.least > -math.inf
        self._stages, self._shape = stages, shape
        self._last: Requests[_Last] = Requests(self.name)

    @staticmethod
    def required(shape: TreeShape, hidden_layers: tuple[int, ...]) -> Requirements:
        """What a drafter of such trees needs."""
        return Requirements(hidden_layers=hidden_layers, max_branches=max_branches(shape))

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._last.start(request_id, _Last(prompt[-1]))

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        last = [self._last[request_id] for request_id in request_ids]
        states = [seen.state for seen in last]
        before = [[seen.token] for seen in last]
        for stage in self._stages:
            going = [index for index, growth in enumerate(growths) if growth.frontier and len(states[index])]
            if not going:
                break
            counts = [len(growths[index].frontier) for index in going]
            found = stage(
                {
                    "state": np.concatenate([states[index] for index in going]),
                    "tokens": np.array([token for index in going for token in before[index]], np.int64),
                }
            )
            ends = np.cumsum(counts)[:-1]
            parts = [np.split(found[name], ends) for name in ("candidates", "log_probs", "next_state")]
            for index, candidates, log_probs, following in zip(going, *parts, strict=True):
                growth, came_from = growths[index], growths[index].frontier
                growth.grow(candidates, log_probs)
                rows = [came_from.index(growth.parents[node]) for node in growth.frontier]
                states[index] = following[rows]
                before[index] = [growth.tokens[node] for node in growth.frontier]
        return [growth.tree() for growth in growths]

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        if self._shape.most_children > 1:
            return super().extend(request_ids, drafts, budgets)
        seen = [self._last[request_id] for request_id in request_ids]
        able = [
            len(last.state) > 0 and goes_on(self._shape, draft, len(draft) + 1 - _stages(last))
            for last, draft in zip(seen, drafts, strict=True)
        ]
        self._follow(
            [pair for pair, going in zip(zip(seen, drafts, strict=True), able, strict=True) if going]
        )
        return [
            TokenTree.chain([last.turn.guess], scores=[last.turn.score]) if going and last.turn else EMPTY
            for last, going in zip(seen, able, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        last = self._last[request_id]
        last.turn = None
        last.state = outcome.hidden[-1][outcome.kept[-1]][None].copy()
        if outcome.emitted:
            last.token = outcome.emitted[-1]

    def finish(self, request_id: int) -> None:
        self._last.finish(request_id)

    def _follow(self, chains: Sequence[tuple[_Last, TokenTree]]) -> None:
        """Run the stages that have not run yet up to the ends of chains."""
        for number, stage in enumerate(self._stages):
            going = [
                (last, draft.tokens[number - 1] if number else last.token)
                for last, draft in chains
                if _stages(last) == number <= len(draft)
            ]
            if not going:
                continue
            states = [last.state if last.turn is None else last.turn.state for last, _ in going]
            tokens = np.array([token for _, token in going], np.int64)
            found = stage({"state": np.concatenate(states), "tokens": tokens})
            for row, (last, _) in enumerate(going):
                guess, score = int(found["candidates"][row, 0]), min(float(found["log_probs"][row, 0]), 0.0)
                last.turn = _Turn(number + 1, guess, score, found["next_state"][row : row + 1].copy())


def _stages(last: _Last) -> int:
    """How many have run in this step."""
    return 0 if last.turn is None else last.turn.stages
