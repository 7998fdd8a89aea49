"""Drafting with an MLP speculator: one call per stage for the whole batch, over all nodes that go on.

What others have drafted is read by its stages, one a token, so it goes on as far as there are stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import DrafterRows, Graph
from speculators.growth import TreeGrowth, TreeShape, goes_on
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree
from speculators.tree_drafter import Guess, TreeDrafter


@dataclass(slots=True)
class _Turn:
    """A chain that is drafted in turns: stages that have run, what comes next, and the state of the next stage."""

    stages: int
    guess: Guess
    state: NDArray[np.float32]


@dataclass(slots=True)
class _Last:
    """The newest token, and the hidden state ``[1, E]`` after the final norm that it was emitted from.

    There is no state yet where the target has read nothing: all rows were in its cache.
    """

    token: int
    state: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    turn: _Turn | None = None


class MlpDrafter(TreeDrafter[_Last]):
    """The methods are those of ``Speculator``.

    Args:
        stages: the compiled stages; inputs ``state`` and ``tokens``, outputs ``next_state``, ``candidates`` and
            ``log_probs``.
        shape: the tree; at most as deep as there are stages.
    """

    def __init__(self, stages: Sequence[Graph], shape: TreeShape) -> None:
        super().__init__("mlp_speculator", shape, hidden_layers=(-1,))
        self._stages = stages

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._states.start(request_id, _Last(prompt[-1]))

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        last = [self._states[request_id] for request_id in request_ids]
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

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        last = self._states[request_id]
        last.turn = None
        last.state = outcome.hidden[-1][outcome.kept[-1]][None].copy()
        if outcome.emitted:
            last.token = outcome.emitted[-1]

    def _next(self, states: Sequence[_Last], drafts: Sequence[TokenTree]) -> list[Guess | None]:
        able = [
            len(last.state) > 0 and goes_on(self._shape, draft, len(draft) + 1 - _stages(last))
            for last, draft in zip(states, drafts, strict=True)
        ]
        self._follow(
            [(last, draft) for last, draft, going in zip(states, drafts, able, strict=True) if going]
        )
        return [
            last.turn.guess if going and last.turn else None for last, going in zip(states, able, strict=True)
        ]

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
                guess = int(found["candidates"][row, 0]), min(float(found["log_probs"][row, 0]), 0.0)
                last.turn = _Turn(number + 1, guess, found["next_state"][row : row + 1].copy())


def _stages(last: _Last) -> int:
    """How many have run in this step."""
    return 0 if last.turn is None else last.turn.stages
