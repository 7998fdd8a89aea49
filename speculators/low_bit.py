"""Low-bit self-drafting: the target drafts for itself with its weights in four bits (QSpec, arXiv 2410.11305).

Rounded weights seldom change what a target says next, and are a seventh of fp32 ones to read. So a copy of the target
with four-bit layers is run, token by token, on the target's own KV cache, and what it says is verified in one step at
full precision. There is no second cache: a draft writes keys and values behind the rows that stand, where the
verification overwrites them, so each draft goes on from rows that the target itself has computed.

Example: with a copy that the engine has opened over the target's cache (`engine.target_copy`)::

    LowBitSpeculator(copy, draft_length=4).propose([request], [4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.target_access import TargetAccess, TargetCopy, TargetInput
from speculators.tree import EMPTY, TokenTree

# How likely a draft must be, as a whole, to be drafted on. A level reads a seventh to a quarter of what a plain step
# of a target in fp32 reads; half is what it costs beside one in int8.
_LIKELY = 0.3


@dataclass(slots=True)
class _Draft:
    """A draft that grows from the newest token: what is drafted, and how likely the copy finds all of it."""

    request_id: int
    budget: int
    last: int
    tokens: list[int] = field(default_factory=list)
    likely: float = 1.0


class LowBitSpeculator(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        copy: the target in four bits, over the target's own cache.
        draft_length: most tokens drafted in a row.
        adaptive: whether a draft ends where it is no longer likely.
    """

    name = "low_bit"
    requirements = Requirements(drafts_with_target=True)

    def __init__(self, copy: TargetCopy, draft_length: int = 4, adaptive: bool = True) -> None:
        self.max_draft_length = draft_length
        self.ends_drafts = adaptive
        self._copy = copy
        self._last: Requests[list[int]] = Requests(self.name)
        self._target: TargetAccess

    def bind(self, target: TargetAccess) -> None:
        self._target = target

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._last.start(request_id, [prompt[-1]])

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        drafts = [
            _Draft(request_id, min(budget, self.max_draft_length), self._last[request_id][0])
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]
        while going := [draft for draft in drafts if self._goes_on(draft)]:
            logits = self._target.run([self._input(draft) for draft in going], self._copy)
            for draft, row in zip(going, logits, strict=True):
                draft.last = int(row.argmax())
                draft.tokens.append(draft.last)
                draft.likely /= float(np.exp(row - row[draft.last]).sum())
        return [TokenTree.chain(draft.tokens) if draft.tokens else EMPTY for draft in drafts]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        last = self._last[request_id]
        if outcome.emitted:
            last[0] = outcome.emitted[-1]

    def finish(self, request_id: int) -> None:
        self._last.finish(request_id)

    def _goes_on(self, draft: _Draft) -> bool:
        return len(draft.tokens) < draft.budget and not (self.ends_drafts and draft.likely < _LIKELY)

    def _input(self, draft: _Draft) -> TargetInput:
        row = self._target.computed(draft.request_id) + len(draft.tokens)
        return TargetInput(draft.request_id, [draft.last], row, row)
