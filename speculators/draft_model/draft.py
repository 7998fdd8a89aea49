"""Drafting with a small model: chains of its likeliest tokens, one call per depth for the whole batch.

Its KV cache has a row for every token that it has read, in the request's own cache blocks. Rows of drafted tokens stay
where they were accepted; what was rejected is overwritten by what was emitted instead. Rows that an earlier request has
left in shared blocks are taken over; what is missing of them is made again from the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from speculators.base import Speculator
from speculators.graphs import CachedGraph, CachedInput, DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import TokenTree

# Tokens that a request's draft reads in one step: a long prompt must not hold up the others for long.
_LONGEST_READ = 512


@dataclass(slots=True)
class _State:
    """`text` is prompt and output, of which so many tokens have rows as `rows` says, `fed` what has rows after them."""

    rows: DrafterRows
    text: list[int]
    fed: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Chain:
    """A draft in the making, of at most `length` tokens; `score` is its log-probability."""

    state: _State
    length: int
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0


class DraftModelDrafter(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        graph: the compiled draft model.
        draft_length: most tokens of a chain, 1 or more.
        least: log-probability of a chain below which it ends.
    """

    name = "draft_model"

    def __init__(self, graph: CachedGraph, draft_length: int, least: float = -math.inf) -> None:
        self.max_draft_length, self._least = draft_length, least
        self.ends_drafts = least > -math.inf
        self._graph = graph
        self._states: Requests[_State] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._states.start(request_id, _State(rows or DrafterRows(), list(prompt)))

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        chains = [
            _Chain(self._states[request_id], min(budget, self.max_draft_length))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]
        going = self._begin([chain for chain in chains if chain.length])
        while going := [
            chain for chain in going if len(chain.tokens) < chain.length and chain.score >= self._least
        ]:
            self._extend(going)
        return [TokenTree.chain(chain.tokens) for chain in chains]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        if outcome.drafts_nothing_more:
            return
        for fed, token in zip(state.fed, outcome.emitted, strict=False):
            if fed != token:
                break
            state.rows.drafted += 1
        state.fed.clear()
        state.text += outcome.emitted

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    def _begin(self, chains: Sequence[_Chain]) -> list[_Chain]:
        """Read what was emitted; those that have read all of it have their first token, and are returned."""
        batch, begun = [], []
        for chain in chains:
            state, rows = chain.state, chain.state.rows
            left = len(state.text) - rows.drafted
            size = min(left, _LONGEST_READ)
            size -= (
                left - size == 1
            )  # a row of a prompt is never computed alone; see the promise in `engine.runner`
            whole = size == left
            tokens = state.text[rows.drafted : rows.drafted + size]
            batch.append(CachedInput(rows.blocks, tokens, rows.drafted, outputs_from=size - whole))
            rows.drafted += size
            if whole:
                begun.append(chain)
        self._run(batch, begun)
        return begun

    def _extend(self, chains: Sequence[_Chain]) -> None:
        """Feed each one's last token, for the one after it."""
        batch = []
        for chain in chains:
            state, rows = chain.state, chain.state.rows
            batch.append(CachedInput(rows.blocks, chain.tokens[-1:], rows.drafted + len(state.fed)))
            state.fed.append(chain.tokens[-1])
        self._run(batch, chains)

    def _run(self, batch: Sequence[CachedInput], chains: Sequence[_Chain]) -> None:
        """One call; its outputs are the next tokens of the chains."""
        if not batch:
            return
        found = self._graph.run(batch)
        likeliest = zip(
            chains, found["candidates"][:, 0].tolist(), found["log_probs"][:, 0].tolist(), strict=True
        )
        for chain, token, log_prob in likeliest:
            chain.tokens.append(token)
            chain.score += log_prob
