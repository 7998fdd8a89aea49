"""Lookahead decoding: the target finds n-grams of its own beside the text, and verifies them (Fu et al., 2402.02057).

A step has two branches, both in one run of the target on one tree:

* The *lookahead branch* solves for tokens that are still to come by Jacobi iteration. A window has W columns, at
  positions one after another, and in each the last N - 1 iterations. Its first row, which begins with the current
  token, is a chain; the rest of each column hangs below its place in it. What the target says at the end of a column is
  the column's newest token. Head of a column and the N - 1 tokens after it are an n-gram for the pool, then every
  column loses its oldest token, and the window moves on by one. These nodes are probes: run, never accepted.
* The *verification branch* are n-grams of the pool that begin with the current token, up to G. Such that begin alike
  share nodes.

The window starts with tokens of the prompt, drawn with a fixed seed, and is filled in N - 2 steps. As in TensorRT-LLM
n-grams of prompt and output are in the pool as well. For each token it keeps the G n-grams that were found last.

Example:
    >>> speculator = LookaheadSpeculator(window=2, ngram=3, verification_set=2)
    >>> speculator.start(0, [5, 6, 7, 5, 8, 9, 5])
    >>> tree = speculator.propose([0], [4])[0]
    >>> tree.tokens[:tree.drafted], tree.parents[:tree.drafted], tree.probes
    ((8, 9, 6, 7), (-1, 0, -1, 2), 2)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import EMPTY, ROOT, TokenTree

_MOST_KEYS = 4096  # tokens that a request's pool has n-grams of
_ROWS = 32  # of a cache block, of which a branch has two
_SEED = 0  # of the tokens that a window starts with: the same prompt is drafted for in the same way


class NgramPool:
    """The n-grams of one request by their first token, the newest ones of each; of the tokens found least lately, none.

    Args:
        ngram: tokens of an n-gram.
        each: n-grams that are kept of a token.
        keys: tokens that n-grams are kept of.
    """

    def __init__(self, ngram: int, each: int, keys: int = _MOST_KEYS) -> None:
        self._ngram, self._each, self._keys = ngram, each, keys
        self._found: OrderedDict[int, dict[tuple[int, ...], None]] = OrderedDict()
        self._tail: list[int] = []

    def add(self, ngram: Sequence[int]) -> None:
        """Take in one n-gram, as the newest."""
        first, rest = ngram[0], tuple(ngram[1:])
        known = self._found.setdefault(first, {})
        known.pop(rest, None)
        known[rest] = None
        if len(known) > self._each:
            del known[next(iter(known))]
        self._found.move_to_end(first)
        if len(self._found) > self._keys:
            self._found.popitem(last=False)

    def read(self, tokens: Iterable[int]) -> None:
        """Take in the text's next tokens, and so the n-grams that they complete."""
        for token in tokens:
            self._tail = [*self._tail[1 - self._ngram :], token]
            if len(self._tail) == self._ngram:
                self.add(self._tail)

    def guesses(self, token: int) -> list[tuple[int, ...]]:
        """What may come after a token, the newest first; N - 1 tokens each."""
        return list(reversed(self._found.get(token, {})))


class Window:
    """The lookahead branch of one request.

    Args:
        columns: W.
        ngram: N; a full column has N - 1 tokens.
        start: W + N - 3 tokens, those of the first iteration.

    While it fills, tokens stand before the columns for the positions up to the first one; once it is full, the current
    token stands for the head of the first column.
    """

    def __init__(self, columns: int, ngram: int, start: Sequence[int]) -> None:
        before = len(start) - columns
        self._full = ngram - 1
        self._before = list(start[: max(0, before)])
        # With n-grams of two tokens there is nothing to fill, and the first column's head is the current token.
        self._columns = [[token] for token in ([start[0]] * -before + list(start))[-columns:]]

    @property
    def _is_full(self) -> bool:
        return len(self._columns[0]) == self._full

    def nodes(self) -> tuple[list[int], list[int], list[int]]:
        """Tokens of the branch, their parents, and the node at the end of each column; ROOT is the current token."""
        heads = [column[0] for column in self._columns]
        tokens = [*self._before, *(heads[1:] if self._is_full else heads)]
        parents = list(range(ROOT, len(tokens) - 1))
        first = len(tokens) - len(heads)
        ends = []
        for place, column in enumerate(self._columns):
            end = first + place  # ROOT, where the first column's head is the current token
            for token in column[1:]:
                tokens.append(token)
                parents.append(end)
                end = len(tokens) - 1
            ends.append(end)
        return tokens, parents, ends

    def advance(self, current: int, answers: Sequence[int]) -> list[tuple[int, ...]]:
        """Take in what the target said at the end of each column; returns the n-grams that are complete.

        Args:
            current: the token at the root of that step.
            answers: a token for each column.
        """
        for column, answer in zip(self._columns, answers, strict=True):
            column.append(answer)
        if len(self._columns[0]) <= self._full:
            self._before = self._before[1:]
            return []
        self._columns[0][0] = current
        ngrams = [tuple(column) for column in self._columns]
        for column in self._columns:
            del column[0]
        return ngrams


@dataclass(slots=True)
class _State:
    """Of a request: the newest token of its text, and the tokens and ends of the probes that it was run on last."""

    last: int
    pool: NgramPool
    window: Window
    probes: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class LookaheadSpeculator(Speculator):
    """The methods are those of ``Speculator``; names of the settings are TensorRT-LLM's.

    Args:
        window: W, columns of the window, 2 or more.
        ngram: N, 2 or more.
        verification_set: G, n-grams that are verified in a step, and kept of a token, 1 or more.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "lookahead"

    def __init__(self, window: int = 4, ngram: int = 3, verification_set: int = 4) -> None:
        for setting, value, least in (
            ("window", window, 2),
            ("ngram", ngram, 2),
            ("verification_set", verification_set, 1),
        ):
            if value < least:
                raise ValueError(f"lookahead: {setting} is {value}; it must be {least} or more")
        self.max_draft_length = verification_set * (ngram - 1)
        self.requirements = Requirements(
            # each of the n-grams and columns, and what the window's first row has beyond a block
            max_branches=(verification_set + window) * -(-ngram // _ROWS) + (window + ngram) // _ROWS,
            max_probes=(window - 1) * (ngram - 1) + ngram - 2,
            target_tokens=1,
            scratch_rows=window + ngram - 3,
        )
        self._window, self._ngram, self._set = window, ngram, verification_set
        self._states: Requests[_State] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        start = Random(_SEED).choices(prompt, k=self._window + self._ngram - 3)
        window = Window(self._window, self._ngram, start)
        state = _State(prompt[-1], NgramPool(self._ngram, self._set), window)
        self._states.start(request_id, state)
        state.pool.read(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            self._tree(self._states[request_id], budget)
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        if outcome.drafts_nothing_more or not outcome.emitted:
            return
        if outcome.target_tokens is not None and self._ran(state, outcome.tree):
            first = outcome.tree.drafted + 1
            answers = outcome.target_tokens[[0 if end == ROOT else first + end for end in state.ends], 0]
            for ngram in state.window.advance(state.last, answers.tolist()):
                state.pool.add(ngram)
        state.pool.read(outcome.emitted)
        state.last, state.probes = outcome.emitted[-1], []

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    def _tree(self, state: _State, budget: int) -> TokenTree:
        """Both branches: as much of the guesses as there may be, then the window."""
        if not budget:
            return EMPTY
        tokens, parents = _trie(state.pool.guesses(state.last), min(budget, self.max_draft_length))
        drafted = len(tokens)
        state.probes, above, state.ends = state.window.nodes()
        tokens += state.probes
        parents += [parent if parent == ROOT else drafted + parent for parent in above]
        return TokenTree(tuple(tokens), tuple(parents), probes=len(state.probes))

    def _ran(self, state: _State, tree: TokenTree) -> bool:
        """Whether the target was run on the window: others may have drafted, or its nodes have been left out."""
        return bool(state.probes) and list(tree.tokens[tree.drafted :]) == state.probes


def _trie(guesses: Sequence[Sequence[int]], most: int) -> tuple[list[int], list[int]]:
    """Tokens and parents of a tree of the guesses, the first ones first, of at most `most` nodes."""
    tokens: list[int] = []
    parents: list[int] = []
    places: dict[tuple[int, int], int] = {}
    for guess in guesses:
        node = ROOT
        for token in guess:
            place = places.get((node, token))
            if place is None:
                if len(tokens) == most:
                    return tokens, parents
                place = places[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = place
    return tokens, parents
