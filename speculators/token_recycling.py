"""Token Recycling: what the target found likely after a token once, it is asked again (Luo et al., arXiv 2408.08696).

An adjacency matrix holds, for every token, the tokens that the target found likeliest the last time it was run on it,
the likeliest first. All nodes of a step teach, the rejected ones too: their rows are computed anyway and thrown away
elsewhere. A draft is the breadth-first walk over the matrix from the last emitted token along a static tree, which is
imbalanced: the likelier a token by its rank, the more below it. There is nothing to train, and a row a token to store.

The paper's tree (80 nodes) is found by search on its traces. Here it is grown from one figure, how much likelier a rank
is than the next, so that there is one for every size; a tree of fewer nodes is the beginning of a larger one.

Example:
    >>> import numpy as np
    >>> speculator = TokenRecycling(max_draft_tokens=3)
    >>> speculator.start(0, [5])
    >>> speculator.observe(0, StepOutcome([6], target_tokens=np.array([[6, 7]])))     # at 5: first 6, then 7
    >>> speculator.observe(0, StepOutcome([5], target_tokens=np.array([[5, 8]])))     # at 6: first 5, then 8
    >>> speculator.propose([0], [3])[0]
    TokenTree(tokens=(6, 5, 7), parents=(-1, 0, -1))
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import ROOT, TokenTree

Path = tuple[int, ...]
Adjacency = dict[int, tuple[int, ...]]

_DEPTH = 6  # levels of the paper's tree
# Of rank r the share is this to the power of r + 1: the acceptance by rank that Sequoia reports falls about so.
_SHARE = 0.45


@cache
def static_tree(nodes: int, children: int) -> tuple[Path, ...]:
    """The ranks that lead to each node, the likeliest first, so that parents come before their children."""
    found: list[Path] = []
    waiting: list[tuple[float, Path]] = [(1.0, ())]
    while waiting and len(found) <= nodes:
        score, path = heapq.heappop(waiting)
        found.append(path)
        if len(path) < _DEPTH:
            for rank in range(children):
                heapq.heappush(waiting, (score / _SHARE ** (rank + 1), (*path, rank)))
    return tuple(found[1:])


@dataclass(slots=True)
class _State:
    """Of a request: the newest token of its text, and the matrix that it learns and drafts from."""

    last: int
    successors: Adjacency


class TokenRecycling(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        max_draft_tokens: nodes of the tree, 1 or more.
        candidates: successors that are kept of a token, 1 or more (paper: 8).
        shared: whether all requests learn from each other; if not, each begins with an empty matrix.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "token_recycling"

    def __init__(self, max_draft_tokens: int = 12, candidates: int = 8, shared: bool = True) -> None:
        for setting, value in (("max_draft_tokens", max_draft_tokens), ("candidates", candidates)):
            if value < 1:
                raise ValueError(f"token_recycling: {setting} is {value}; it must be 1 or more")
        self.max_draft_length = max_draft_tokens
        self.requirements = Requirements(
            max_branches=max_draft_tokens - 1 if candidates > 1 else 0, target_tokens=candidates
        )
        self._tree = static_tree(max_draft_tokens, candidates)
        self._shared: Adjacency | None = {} if shared else None
        self._states: Requests[_State] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        successors: Adjacency = {} if self._shared is None else self._shared
        self._states.start(request_id, _State(prompt[-1], successors))

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            self._walk(self._states[request_id], budget)
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        if outcome.target_tokens is not None:
            nodes = (state.last, *outcome.tree.tokens)
            for token, successors in zip(nodes, outcome.target_tokens.tolist(), strict=True):
                state.successors[token] = tuple(successors)
        if outcome.emitted:
            state.last = outcome.emitted[-1]

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    def _walk(self, state: _State, budget: int) -> TokenTree:
        """The first nodes of the static tree that the matrix knows, as many as there may be."""
        tokens: list[int] = []
        parents: list[int] = []
        places: dict[Path, tuple[int, int]] = {(): (ROOT, state.last)}
        for path in self._tree:
            above = places.get(path[:-1])
            successors = () if above is None else state.successors.get(above[1], ())
            if above is None or path[-1] >= len(successors) or len(tokens) >= budget:
                continue
            places[path] = len(tokens), successors[path[-1]]
            tokens.append(successors[path[-1]])
            parents.append(above[0])
        return TokenTree(tuple(tokens), tuple(parents))
