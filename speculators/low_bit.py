"""Low-bit self-drafting: the target drafts for itself with its weights in four bits, on its own KV cache.

Rounded weights seldom change what a target says next, and are a sixth of fp32 ones to read. So a copy of the target
with four-bit layers is run, token by token, on the cache of the target, and what it says is verified in one step at
full precision. Drafting and verifying on one cache is QSpec's (arXiv 2410.11305), where both have the same four-bit
weights and differ in their activations. A draft writes keys and values behind the rows that stand, where the
verification overwrites them, so each draft goes on from rows that the target itself has computed.

How likely the copy finds a token does not say whether the target agrees: it nearly always does where it takes the
likeliest, however unlikely that is. So drafts do not end where they become unlikely; what was accepted lately decides.

Example: with a copy that the engine has opened over the target's cache (`engine.target_copy`)::

    LowBitSpeculator(copy, draft_length=4).propose([request], [4])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.target_access import TargetAccess, TargetCopy, TargetInput
from speculators.tree import EMPTY, TokenTree


@dataclass(slots=True)
class _Draft:
    """A draft that grows from the newest token of a request."""

    request_id: int
    budget: int
    last: int
    tokens: list[int] = field(default_factory=list)


class LowBitSpeculator(Speculator):
    """The methods are those of ``Speculator``.

    Args:
        copy: the target in four bits, over the target's own cache.
        draft_length: most tokens drafted in a row.
    """

    name = "low_bit"
    requirements = Requirements(drafts_with_target=True)

    def __init__(self, copy: TargetCopy, draft_length: int = 4) -> None:
        self.max_draft_length = draft_length
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
        while going := [draft for draft in drafts if len(draft.tokens) < draft.budget]:
            logits = self._target.run([self._input(draft) for draft in going], self._copy)
            for draft, token in zip(going, logits.argmax(axis=1).tolist(), strict=True):
                draft.last = token
                draft.tokens.append(token)
        return [TokenTree.chain(draft.tokens) if draft.tokens else EMPTY for draft in drafts]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        last = self._last[request_id]
        if outcome.emitted:
            last[0] = outcome.emitted[-1]

    def finish(self, request_id: int) -> None:
        self._last.finish(request_id)

    def _input(self, draft: _Draft) -> TargetInput:
        row = self._target.computed(draft.request_id) + len(draft.tokens)
        return TargetInput(draft.request_id, [draft.last], row, row)
