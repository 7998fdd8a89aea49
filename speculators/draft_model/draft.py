"""Drafting with a small model: chains of its likeliest tokens, one call per depth for the whole batch.

Its KV cache has a row for every token that it has read. Rows of drafted tokens stay where they were accepted; what
was rejected is overwritten by what was emitted instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import CachedGraph, SlotInput
from speculators.requests import Requests
from speculators.slots import Slots
from speculators.tree import TokenTree

# Tokens that a request's draft reads in one step: a long prompt must not hold up the others for long.
_LONGEST_READ = 512


@dataclass(slots=True)
class _State:
    """`text` is prompt and output, `cached` how many of its tokens have rows, `fed` what has rows after it."""

    slot: int
    text: list[int]
    cached: int = 0
    fed: list[int] = field(default_factory=list)


class DraftModelDrafter:
    """The methods are those of ``Speculator``.

    Args:
        graph: the compiled draft model.
        draft_length: most tokens of a chain, 1 or more.
    """

    name = "draft_model"
    needs_hidden: tuple[int, ...] = ()
    max_branches = 0

    def __init__(self, graph: CachedGraph, draft_length: int) -> None:
        self.max_draft_length = draft_length
        self._graph = graph
        self._slots = Slots(self.name, graph.slots)
        self._states: Requests[_State] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int]) -> None:
        state = _State(-1, list(prompt))
        self._states.start(request_id, state)
        state.slot = self._slots.take()

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        states = [self._states[request_id] for request_id in request_ids]
        lengths = [min(budget, self.max_draft_length) for budget in budgets]
        drafting = [state for state, length in zip(states, lengths, strict=True) if length]
        going = {state.slot: [token] for state, token in zip(*self._read(drafting), strict=True)}
        for depth in range(1, self.max_draft_length):
            longer = [
                state
                for state, length in zip(states, lengths, strict=True)
                if length > depth and state.slot in going
            ]
            for state, token in zip(longer, self._extend(longer, going), strict=True):
                going[state.slot].append(token)
        return [
            TokenTree.chain(going.get(state.slot, ()) if length else ())
            for state, length in zip(states, lengths, strict=True)
        ]

    def observe(
        self, request_id: int, accepted: Sequence[int], hidden: NDArray[np.float32] | None = None
    ) -> None:
        state = self._states[request_id]
        for fed, token in zip(state.fed, accepted, strict=False):
            if fed != token:
                break
            state.cached += 1
        state.fed.clear()
        state.text += accepted

    def finish(self, request_id: int) -> None:
        self._slots.give_back(self._states.finish(request_id).slot)

    def _read(self, states: Sequence[_State]) -> tuple[list[_State], list[int]]:
        """Read what was emitted; those that have read all of it, and the likeliest token after it."""
        batch, done = [], []
        for state in states:
            tokens = state.text[state.cached : state.cached + _LONGEST_READ]
            whole = state.cached + len(tokens) == len(state.text)
            batch.append(SlotInput(state.slot, tokens, state.cached, outputs_from=len(tokens) - whole))
            state.cached += len(tokens)
            if whole:
                done.append(state)
        return done, self._run(batch)

    def _extend(self, states: Sequence[_State], drafted: dict[int, list[int]]) -> list[int]:
        """Feed each one's last drafted token; the likeliest token after it."""
        batch = []
        for state in states:
            batch.append(SlotInput(state.slot, drafted[state.slot][-1:], state.cached + len(state.fed)))
            state.fed.append(drafted[state.slot][-1])
        return self._run(batch)

    def _run(self, batch: Sequence[SlotInput]) -> list[int]:
        if not batch:
            return []
        likeliest: list[int] = self._graph.run(batch)["candidates"][:, 0].tolist()
        return likeliest
