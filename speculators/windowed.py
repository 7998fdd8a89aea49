"""Windowed self-drafting: the target drafts for itself on a part of its own cache (MagicDec, arXiv 2408.11049).

At long contexts reading the cache is what a step costs, and most of the next tokens can be told from a small part of
it. So the target is run, token by token, on the first blocks of a request's cache (StreamingLLM's sinks) and some
others, and what it says is verified on all of it in one step. There are no weights and no cache beside the target's
own: a draft reads a list of blocks, at the positions at which their rows were computed, and writes behind the rows that
stand, where the verification overwrites it. Which blocks, of as many as the window holds, has three ways:

* ``window``: the newest ones (StreamingLLM, arXiv 2309.17453). The window rolls on with the text.
* ``snapkv``: those that the last tokens of the prompt attended to most (SnapKV, arXiv 2404.14469, there by head, here
  the same blocks for all), and what came after the prompt.
* ``verified``: those that the last verification attended to most (Vegas, arXiv 2602.07223).

A cheaper drafter may go first, as in TriForce (arXiv 2404.11912): a lookup in the request's own text guesses some
tokens ahead, and one run on the window tells how many of them the target would have drafted.

Example: with 512 rows of 8,000 a draft of SmolLM2-135M reads a sixteenth of the cache, and all of the weights::

    WindowedSpeculator(draft_length=4, window=512).propose([request], [4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speculators.anpd import NgramTable
from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.target_access import TargetAccess, TargetInput
from speculators.tree import EMPTY, TokenTree

Choice = Literal["window", "snapkv", "verified"]

_SINKS = 4  # tokens (StreamingLLM, arXiv 2309.17453)
_NGRAM = 5  # of the lookup
# How likely a draft must be to be drafted on. A level costs most of a plain step where weights are what a step reads,
# so it has to save one nearly always.
_LIKELY = 0.6


@dataclass(slots=True)
class _State:
    """Of a request: newest token and length of its text, the text for a lookup in it, and what its blocks are worth."""

    last: int
    length: int
    table: NgramTable | None
    weights: NDArray[np.float32] | None = None


@dataclass(slots=True)
class _Draft:
    """A draft that grows: its tokens, how likely the window finds them all, and what the next run gets of guesses."""

    request_id: int
    budget: int
    tokens: list[int] = field(default_factory=list)
    likely: float = 1.0
    guess: list[int] = field(default_factory=list)


class WindowedSpeculator(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        draft_length: most tokens drafted in a row.
        window: most rows of a request's cache that a draft reads, in whole blocks but for the last one; never less than
            the sinks' blocks and the last one.
        sink_tokens: first tokens of a request that are always among them; None: 4.
        choice: of the others.
        min_context: shortest context that is drafted for; None: twice the window.
        lookup: tokens that a lookup in the request's own text guesses ahead of each run on the window; 0: none.
        adaptive: whether a draft ends where it is no longer likely.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "windowed"

    def __init__(
        self,
        draft_length: int = 4,
        window: int = 512,
        sink_tokens: int | None = None,
        choice: Choice = "window",
        min_context: int | None = None,
        lookup: int = 0,
        adaptive: bool = True,
    ) -> None:
        for setting, value, least in (
            ("draft_length", draft_length, 1),
            ("window", window, 1),
            ("lookup", lookup, 0),
        ):
            if value < least:
                raise ValueError(f"windowed: {setting} is {value}; it must be {least} or more")
        self.max_draft_length = draft_length
        self.ends_drafts = adaptive
        self._window, self._sinks = window, _SINKS if sink_tokens is None else sink_tokens
        self.requirements = Requirements(drafts_with_target=True, block_weights=choice != "window")
        self._choice = choice
        self._least = 2 * window if min_context is None else min_context
        self._lookup = lookup
        self._states: Requests[_State] = Requests(self.name)
        self._target: TargetAccess

    def bind(self, target: TargetAccess) -> None:
        self._target = target

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        state = _State(prompt[-1], len(prompt), NgramTable(_NGRAM) if self._lookup else None)
        self._states.start(request_id, state)
        if state.table is not None:
            state.table.extend(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        drafts = [
            _Draft(
                request_id,
                min(budget, self.max_draft_length) if self._states[request_id].length >= self._least else 0,
            )
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]
        while going := [draft for draft in drafts if self._goes_on(draft)]:
            logits = self._target.run([self._input(draft) for draft in going])
            first = 0
            for draft in going:
                rows = logits[first : first + 1 + len(draft.guess)]
                first += len(rows)
                _grow(draft, rows)
        return [TokenTree.chain(draft.tokens) if draft.tokens else EMPTY for draft in drafts]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        state = self._states[request_id]
        if not outcome.emitted:
            return
        weights = outcome.block_weights
        chooses = self._choice == "verified" or (self._choice == "snapkv" and state.weights is None)
        if weights is not None and chooses:
            state.weights = weights[: state.length // self._target.block_size]
        state.last = outcome.emitted[-1]
        state.length += len(outcome.emitted)
        if state.table is not None:
            state.table.extend(outcome.emitted)

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    def _goes_on(self, draft: _Draft) -> bool:
        return len(draft.tokens) < draft.budget and not (self.ends_drafts and draft.likely < _LIKELY)

    def _input(self, draft: _Draft) -> TargetInput:
        """The next run: the newest token and what is guessed after it, on the blocks that the draft reads."""
        state, size = self._states[draft.request_id], self._target.block_size
        drafted = len(draft.tokens)
        if state.table is not None:
            most = min(self._lookup, draft.budget - drafted - 1)
            draft.guess = list(state.table.draft(most, after=draft.tokens))
        computed = self._target.computed(draft.request_id)
        seen = self._seen(state, computed // size, computed % size)
        last = computed + drafted + len(draft.guess)
        return TargetInput(
            draft.request_id,
            [draft.tokens[-1] if draft.tokens else state.last, *draft.guess],
            len(seen) * size + computed % size + drafted,
            computed + drafted,
            [*seen, *range(computed // size, last // size + 1)],
        )

    def _seen(self, state: _State, tail: int, rows: int) -> list[int]:
        """Which of the blocks before the last one, block `tail` with `rows` rows, are read."""
        size, weights = self._target.block_size, state.weights
        sinks = min(tail, -(-self._sinks // size))
        most = min(tail - sinks, max(0, (self._window - rows) // size - sinks))
        if weights is None or most == tail - sinks:
            return [*range(sinks), *range(tail - most, tail)]
        # What has come since nobody has weighed, nor one more block: what was said last is always of use.
        newest = min(most, max(1, tail - len(weights)))
        heaviest = np.argsort(-weights[sinks : tail - newest], kind="stable")[: most - newest]
        return [*range(sinks), *sorted((sinks + heaviest).tolist()), *range(tail - newest, tail)]


def _grow(draft: _Draft, logits: NDArray[np.float32]) -> None:
    """Take in what the target said after the newest token, and after the guesses as far as they hold."""
    for row, guess in zip(logits, [*draft.guess, None], strict=True):
        token = int(row.argmax())
        draft.tokens.append(token)
        draft.likely *= 1 / float(np.exp(row - row[token]).sum())
        if token != guess:
            return
