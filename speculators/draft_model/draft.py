"""Drafting with a small model: chains of its likeliest tokens, one call per depth for the whole batch.

It goes on with what others have drafted, too: all of that is read in the call that gives the token after it.

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
from speculators.tree import EMPTY, TokenTree

# Tokens that a request's draft reads in one step: a long prompt must not hold up the others for long.
_LONGEST_READ = 512


@dataclass(slots=True)
class _State:
    """`text` is prompt and output, of which `rows` says how many tokens have rows.

    `cached_draft` has rows after them, and `guess` is what comes after those, and its log-probability.
    """

    rows: DrafterRows
    text: list[int]
    cached_draft: list[int] = field(default_factory=list)
    guess: tuple[int, float] = (0, 0.0)


@dataclass(slots=True)
class _Chain:
    """A draft in the making, of at most `length` tokens; `scores` are its log-probabilities up to each of them."""

    state: _State
    length: int
    tokens: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def add(self, token: int, log_prob: float) -> None:
        """The next token."""
        self.scores.append((self.scores[-1] if self.scores else 0.0) + log_prob)
        self.tokens.append(token)


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
            chain for chain in going if len(chain.tokens) < chain.length and self._likely(chain.scores)
        ]:
            self._extend(going)
        return [TokenTree.chain(chain.tokens, scores=chain.scores) for chain in chains]

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        states = [self._states[request_id] for request_id in request_ids]
        going = [
            (state, draft)
            for state, draft in zip(states, drafts, strict=True)
            if len(draft) < self.max_draft_length and self._likely(draft.scores)
        ]
        able = self._follow(going)
        return [
            TokenTree.chain([state.guess[0]], scores=[state.guess[1]]) if id(state) in able else EMPTY
            for state in states
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        if outcome.drafts_nothing_more:
            return
        for drafted, token in zip(state.cached_draft, outcome.emitted, strict=False):
            if drafted != token:
                break
            state.rows.drafted += 1
        state.cached_draft.clear()
        state.text += outcome.emitted

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    def _likely(self, scores: Sequence[float] | None) -> bool:
        """Whether a chain with these log-probabilities goes on."""
        return not self.ends_drafts or (scores[-1] if scores else 0.0) >= self._least

    def _begin(self, chains: Sequence[_Chain]) -> list[_Chain]:
        """Read what was emitted; those that have read all of it have their first token, and are returned."""
        able = self._follow([(chain.state, EMPTY) for chain in chains])
        begun = [chain for chain in chains if id(chain.state) in able]
        for chain in begun:
            chain.add(*chain.state.guess)
        return begun

    def _extend(self, chains: Sequence[_Chain]) -> None:
        """Run the model on each one's last token, for the one after it."""
        self._follow([(chain.state, TokenTree.chain(chain.tokens)) for chain in chains])
        for chain in chains:
            chain.add(*chain.state.guess)

    def _follow(self, chains: Sequence[tuple[_State, TokenTree]]) -> set[int]:
        """Read, in one call, what was emitted and drafted and has no row yet; then the guess is what comes after it.

        Returns:
            The identity of each state whose text is read to its end.
        """
        batch: list[CachedInput] = []
        asked: list[_State] = []
        able: set[int] = set()
        for state, draft in chains:
            rows = state.rows
            left = len(state.text) - rows.drafted
            size = min(left, _LONGEST_READ)
            # A row of a prompt is never computed alone; see the promise in `engine.runner`.
            size -= left - size == 1
            whole, past = size == left, rows.drafted + len(state.cached_draft)
            tokens = state.text[rows.drafted : rows.drafted + size]
            rows.drafted += size
            if whole:
                tokens += draft.tokens[len(state.cached_draft) :]
                state.cached_draft = list(draft.tokens)
                able.add(id(state))
            if tokens:
                batch.append(CachedInput(rows.blocks, tokens, past, outputs_from=len(tokens) - whole))
                if whole:
                    asked.append(state)
        if batch:
            found = self._graph.run(batch)
            best = zip(found["candidates"][:, 0].tolist(), found["log_probs"][:, 0].tolist(), strict=True)
            for state, guess in zip(asked, best, strict=True):
                state.guess = guess
        return able
