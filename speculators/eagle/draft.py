"""Drafting with EAGLE drafters, all versions: one call per level for the whole batch.

The drafter's KV cache has a row for every emitted token but the first one of the text: the token, and the target's
hidden state at the position before it. Rows of drafted tokens carry the drafter's own hidden states, so none of them
stays: what was accepted is read again with the target's. A chain is extended row by row; of a tree, which shares its
rows with nobody, all nodes that go on are run at every level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import Arrays, CachedGraph, Graph, SlotInput
from speculators.growth import TreeGrowth, TreeShape, max_branches
from speculators.requests import Requests
from speculators.slots import Slots
from speculators.tree import ROOT, TokenTree

Rows = NDArray[np.float32]


@dataclass(slots=True)
class _State:
    """One request.

    `cached` rows lie in its slot, of which the last is `root`; `tokens` and `features`, the target's hidden states,
    are still to be read. `prompt` is there until the first tokens are emitted.
    """

    slot: int
    prompt: tuple[int, ...]
    cached: int = 0
    root: tuple[int, Rows] | None = None
    tokens: list[int] = field(default_factory=list)
    features: list[Rows] = field(default_factory=list)


class _Drafting:
    """One request's tree in the making: what was run, and with which hidden states."""

    def __init__(self, state: _State, growth: TreeGrowth) -> None:
        self.state, self.growth = state, growth
        self._run: list[int] = []
        self._hidden: dict[int, Rows] = {}  # of what goes on below a node

    def grow(self, candidates: NDArray[np.int64], log_probs: Rows, following: Rows) -> None:
        """Take in the outputs of the frontier's rows, one each."""
        for node, hidden in zip(self.growth.frontier, following, strict=True):
            self._hidden[node] = hidden.copy()
        self.growth.grow(candidates, log_probs)

    def next_input(self) -> SlotInput:
        """The frontier's rows, below what was run before."""
        growth, state = self.growth, self.state
        assert state.root is not None
        self._run += growth.frontier
        place = {node: row for row, node in enumerate(self._run, start=1)} | {ROOT: 0}
        parents = [0, *(place[growth.parents[node]] for node in self._run)]
        token, hidden = state.root
        tokens = [token, *(growth.tokens[node] for node in self._run)]
        rows = np.stack([hidden, *(self._hidden[growth.parents[node]] for node in self._run)])
        if parents[1:] == list(range(len(self._run))):  # a chain, whose rows before the last are in place
            past = state.cached + len(self._run) - 1
            return SlotInput(state.slot, tokens[-1:], past, hidden=rows[-1:])
        first = len(tokens) - len(growth.frontier)
        return SlotInput(state.slot, tokens, state.cached - 1, parents, first, rows)


class EagleDrafter:
    """The methods are those of ``Speculator``.

    Args:
        name: the method.
        graph: the compiled drafter; outputs ``candidates``, ``log_probs`` and ``next_hidden``.
        fusion: of EAGLE-3, input ``features`` float ``[rows, layers * H]``, output ``hidden``; None: the one hidden
            state is read as it is.
        shape: the tree.
        needs_hidden: hidden states of the target.
    """

    def __init__(
        self,
        name: str,
        graph: CachedGraph,
        fusion: Graph | None,
        shape: TreeShape,
        needs_hidden: tuple[int, ...],
    ) -> None:
        self.name, self.needs_hidden = name, needs_hidden
        self.max_draft_length, self.max_branches = shape.total, max_branches(shape)
        self.ends_drafts = shape.least > -math.inf
        self._graph, self._fusion, self._shape = graph, fusion, shape
        self._slots = Slots(name, graph.slots)
        self._states: Requests[_State] = Requests(name)

    def start(self, request_id: int, prompt: Sequence[int]) -> None:
        state = _State(-1, tuple(prompt))
        self._states.start(request_id, state)
        state.slot = self._slots.take()

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        drafting = [
            _Drafting(self._states[request_id], growth)
            for request_id, growth in zip(request_ids, growths, strict=True)
        ]
        going = [draft for draft in drafting if draft.growth.frontier]
        batch = self._unread([draft.state for draft in going])
        while going:
            self._grow(going, self._graph.run(batch))
            going = [draft for draft in going if draft.growth.frontier]
            batch = [draft.next_input() for draft in going]
        return [growth.tree() for growth in growths]

    def observe(self, request_id: int, accepted: Sequence[int], hidden: Rows | None = None) -> None:
        assert hidden is not None  # needs_hidden says so
        state = self._states[request_id]
        rows = hidden.reshape(len(hidden), -1)
        state.tokens += (*state.prompt, *accepted)[-len(rows) :]
        state.features.append(rows)
        state.prompt = ()

    def finish(self, request_id: int) -> None:
        self._slots.give_back(self._states.finish(request_id).slot)

    def _unread(self, states: Sequence[_State]) -> list[SlotInput]:
        """What was emitted since the last draft, with the target's hidden states."""
        if not states:
            return []
        fused = np.concatenate([rows for state in states for rows in state.features])
        if self._fusion is not None:
            fused = self._fusion({"features": fused})["hidden"].copy()
        batch, first = [], 0
        for state in states:
            count = len(state.tokens)
            hidden, first = fused[first : first + count], first + count
            batch.append(
                SlotInput(
                    state.slot, tuple(state.tokens), state.cached, outputs_from=count - 1, hidden=hidden
                )
            )
            state.cached += count
            state.root = state.tokens[-1], hidden[-1]
            state.tokens.clear()
            state.features.clear()
        return batch

    @staticmethod
    def _grow(going: Sequence[_Drafting], found: Arrays) -> None:
        first = 0
        for draft in going:
            rows = slice(first, first + len(draft.growth.frontier))
            first = rows.stop
            draft.grow(found["candidates"][rows], found["log_probs"][rows], found["next_hidden"][rows])
