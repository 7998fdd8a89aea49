"""The speculator that never proposes: plain decoding, the baseline of every measurement."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import EMPTY, TokenTree


class NoSpeculator(Speculator):
    """Proposes an empty tree for every request; the methods are those of ``Speculator``."""

    name = "none"
    max_draft_length = 0

    def __init__(self) -> None:
        self._running: Requests[None] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._running.start(request_id, None)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        for request_id in request_ids:
            self._running[request_id]
        return [EMPTY] * len(request_ids)

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._running[request_id]

    def finish(self, request_id: int) -> None:
        self._running.finish(request_id)
