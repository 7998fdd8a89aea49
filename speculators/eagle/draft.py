"""Drafting with EAGLE drafters, all versions: one call per level for the whole batch.

The drafter's KV cache has a row for every token of the text but the first one: the token, and the target's hidden state
at the position before it. Row r is thus made of token r + 1 and hidden state r, and lies in the request's own cache
blocks, so whoever takes over rows of the target finds the drafter's beside them. A prompt is read as the target reads
it, part by part. Rows of drafted tokens carry the drafter's own hidden states, so none of them stays: what was accepted
is read again with the target's. A chain is extended row by row, also over what others have drafted: a row needs the
hidden state before it, which only the row before tells. Of a tree, which shares its rows with nobody, all nodes that go
on are run at every level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.graphs import Arrays, CachedGraph, CachedInput, DrafterRows, Graph
from speculators.growth import TreeGrowth, TreeShape, goes_on
from speculators.outcome import StepOutcome
from speculators.tree import ROOT, TokenTree
from speculators.tree_drafter import Guess, TreeDrafter

Rows = NDArray[np.float32]
# Rows that a draft reads before its first token at most; where nothing is drafted for long, more are read in between.
_MOST_WAITING = 64


@dataclass(slots=True)
class _Turn:
    """A chain that is drafted in turns, as far as its rows are there: what comes next, and with which hidden state."""

    rows: int
    guess: Guess
    hidden: Rows


@dataclass(slots=True)
class _State:
    """One request.

    `text` is prompt and output. `rows` says how many of its rows are computed; `features`, the target's hidden states,
    are there for those that come next. `root` is the last row before a draft.
    """

    rows: DrafterRows
    text: list[int]
    prompt_rows: int
    root: tuple[int, Rows] | None = None
    features: list[Rows] = field(default_factory=list)
    turn: _Turn | None = None

    @property
    def waiting(self) -> int:
        """Rows that can be computed."""
        return sum(map(len, self.features))

    def readable(self, limit: int) -> int:
        """How many of them, at most `limit`, are computed before the draft; the newest token's never is.

        All that are made of the prompt alone, but never a single one, nor so that a single one is left: see the promise
        in `engine.runner`.
        """
        older = min(self.waiting, len(self.text) - 2 - self.rows.drafted)
        left = self.prompt_rows - self.rows.drafted
        size = min(older, left, limit)
        size -= left - size == 1
        if size > 1 or size == left > 0:
            return size
        return min(older, limit) if left <= 0 and self.waiting > _MOST_WAITING else 0

    @property
    def behind(self) -> int:
        """Rows that are to be computed before the next draft, which takes in the others."""
        return self.readable(self.waiting)


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

    def next_input(self) -> CachedInput:
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
            past = state.rows.drafted + len(self._run) - 1
            return CachedInput(state.rows.blocks, tokens[-1:], past, hidden=rows[-1:])
        first = len(tokens) - len(growth.frontier)
        return CachedInput(state.rows.blocks, tokens, state.rows.drafted - 1, parents, first, rows)


class EagleDrafter(TreeDrafter[_State]):
    """The methods are those of ``Speculator``.

    Args:
        name: the method.
        graph: the compiled drafter; outputs ``candidates``, ``log_probs`` and ``next_hidden``.
        fusion: of EAGLE-3, input ``features`` float ``[rows, layers * H]``, output ``hidden``; None: the one hidden
            state is read as it is.
        shape: the tree.
        hidden_layers: hidden states of the target that it reads.
    """

    rows_ahead = 1

    def __init__(
        self,
        name: str,
        graph: CachedGraph,
        fusion: Graph | None,
        shape: TreeShape,
        hidden_layers: tuple[int, ...],
    ) -> None:
        super().__init__(name, shape, hidden_layers)
        self._graph, self._fusion = graph, fusion

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._states.start(request_id, _State(rows or DrafterRows(), list(prompt), len(prompt) - 1))

    def catch_up(self, request_ids: Sequence[int], limit: int) -> list[int]:
        parts = []
        for request_id in request_ids:
            state = self._states[request_id]
            if size := state.readable(limit):
                parts.append((state, size))
                limit -= size
        if parts:
            self._graph.run(self._read(parts))
        return [self._states[request_id].behind for request_id in request_ids]

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        drafting = [
            _Drafting(self._states[request_id], growth)
            for request_id, growth in zip(request_ids, growths, strict=True)
        ]
        going = [draft for draft in drafting if draft.growth.frontier]
        batch = self._read([(draft.state, draft.state.waiting) for draft in going])
        while going:
            self._grow(going, self._graph.run(batch))
            going = [draft for draft in going if draft.growth.frontier]
            batch = [draft.next_input() for draft in going]
        return [growth.tree() for growth in growths]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        state.turn = None
        if outcome.drafts_nothing_more:
            return
        state.text += outcome.emitted
        state.features.append(outcome.features(self.requirements.hidden_layers))
        if outcome.ended:  # its prompt may serve others
            self.catch_up([request_id], state.waiting)

    def _next(self, states: Sequence[_State], drafts: Sequence[TokenTree]) -> list[Guess | None]:
        going = [
            (state, draft)
            for state, draft in zip(states, drafts, strict=True)
            if goes_on(self._shape, draft, _missing(state, draft))
        ]
        self._follow(going)
        able = {id(state) for state, _ in going}
        return [
            state.turn.guess if state.turn is not None and id(state) in able else None for state in states
        ]

    def _follow(self, chains: Sequence[tuple[_State, TokenTree]]) -> None:
        """Compute the rows of chains that are not there, one of each in a call."""
        while going := [(state, draft) for state, draft in chains if _missing(state, draft)]:
            begun = [state for state, _ in going if state.turn is None]
            lagging = [(state, state.turn, draft) for state, draft in going if state.turn is not None]
            batch = self._read([(state, state.waiting) for state in begun])
            for state, turn, draft in lagging:
                past = state.rows.drafted + turn.rows
                token = draft.tokens[turn.rows]
                batch.append(CachedInput(state.rows.blocks, [token], past, hidden=turn.hidden[None]))
            found = self._graph.run(batch)
            rows = zip(
                [(state, 0) for state in begun] + [(state, turn.rows + 1) for state, turn, _ in lagging],
                found["candidates"][:, 0].tolist(),
                found["log_probs"][:, 0].tolist(),
                found["next_hidden"],
                strict=True,
            )
            for (state, count), guess, score, hidden in rows:
                state.turn = _Turn(count, (guess, min(score, 0.0)), hidden.copy())

    def _read(self, parts: Sequence[tuple[_State, int]]) -> list[CachedInput]:
        """The next n rows of each request; outputs are wanted of the newest token's, the root of a draft."""
        if not parts:
            return []
        fused = self._fuse(np.concatenate([_take(state.features, count) for state, count in parts]))
        batch, end = [], 0
        for state, count in parts:
            rows, end = state.rows, end + count
            hidden, past = fused[end - count : end], rows.drafted
            rows.drafted += count
            tokens = state.text[past + 1 : rows.drafted + 1]
            newest = rows.drafted == len(state.text) - 1
            batch.append(CachedInput(rows.blocks, tokens, past, outputs_from=count - newest, hidden=hidden))
            state.root = (tokens[-1], hidden[-1]) if newest else None
        return batch

    def _fuse(self, features: Rows) -> Rows:
        """Hidden states of the target as the drafter reads them, a row each."""
        return features if self._fusion is None else self._fusion({"features": features})["hidden"].copy()

    @staticmethod
    def _grow(going: Sequence[_Drafting], found: Arrays) -> None:
        first = 0
        for draft in going:
            rows = slice(first, first + len(draft.growth.frontier))
            first = rows.stop
            draft.grow(found["candidates"][rows], found["log_probs"][rows], found["next_hidden"][rows])


def _missing(state: _State, draft: TokenTree) -> int:
    """Rows that are to be computed before a chain can go on, the one before its first token included."""
    return len(draft) - (-1 if state.turn is None else state.turn.rows)


def _take(features: list[Rows], count: int) -> Rows:
    """Take the first `count` rows out."""
    whole = np.concatenate(features)
    features[:] = [whole[count:]] if count < len(whole) else []
    return whole[:count]
