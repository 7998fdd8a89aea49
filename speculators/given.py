"""Drafts that come with the requests themselves, as on TensorRT-LLM's `draft_tokens_external`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import TokenTree

GIVEN = "given"


@dataclass(slots=True)
class _Draft:
    """Of a request: what somebody has drafted, and how many tokens it has emitted."""

    tokens: Sequence[int] = ()
    emitted: int = 0


class GivenDrafts(Speculator):
    """Proposes what it was given; the methods are those of ``Speculator``.

    Args:
        max_draft_length: most tokens of a draft.
    """

    name = GIVEN

    def __init__(self, max_draft_length: int) -> None:
        self.max_draft_length = max_draft_length
        self._drafts: Requests[_Draft] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._drafts.start(request_id, _Draft())

    def give(self, request_id: int, tokens: Sequence[int]) -> None:
        """Take the draft of a request: tokens that may follow its prompt."""
        self._drafts[request_id].tokens = tokens

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            TokenTree.chain(draft.tokens[draft.emitted : draft.emitted + budget])
            for draft, budget in zip(map(self._drafts.__getitem__, request_ids), budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._drafts[request_id].emitted += len(outcome.emitted)

    def finish(self, request_id: int) -> None:
        self._drafts.finish(request_id)
