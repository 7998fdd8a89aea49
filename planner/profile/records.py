"""Raw records of drafting: for every step what was proposed, and which of it was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One draft and its fate.

    Attributes:
        nodes: its size.
        depth: its levels.
        children: at each node that was reached, the root first, how many guesses were below it.
        ranks: of these nodes but maybe the last, which guess was accepted (0: the first one).
    """

    nodes: int
    depth: int
    children: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(slots=True)
class RequestRecord:
    """One request: its drafts, and the tokens and target steps that it took."""

    prompt: str
    category: str
    temperature: float
    tokens: int = 0
    steps: int = 0
    drafts: list[StepRecord] = field(default_factory=list)


class RecordingSpeculator:
    """A speculator that writes down what becomes of the drafts of another one; the methods are those of ``Speculator``.

    The draft of a request's last step is not among the records: the request ends without telling what was accepted.

    Args:
        speculator: the one that drafts.
    """

    def __init__(self, speculator: Speculator) -> None:
        self.name, self.needs_hidden = speculator.name, speculator.needs_hidden
        self.max_draft_length, self.max_branches = speculator.max_draft_length, speculator.max_branches
        self.ends_drafts, self.rows_ahead = speculator.ends_drafts, speculator.rows_ahead
        self.drafts: dict[int, list[StepRecord]] = {}
        self._speculator = speculator
        self._proposed: dict[int, TokenTree] = {}

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._speculator.start(request_id, prompt, rows)
        self.drafts[request_id] = []

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = self._speculator.propose(request_ids, budgets)
        self._proposed = dict(zip(request_ids, trees, strict=True))
        return trees

    def observe(
        self, request_id: int, accepted: Sequence[int], hidden: NDArray[np.float32] | None = None
    ) -> None:
        self._speculator.observe(request_id, accepted, hidden)
        tree = self._proposed.pop(request_id, None)
        if tree is not None and len(tree):
            self.drafts[request_id].append(follow(tree, accepted))

    def finish(self, request_id: int) -> None:
        self._speculator.finish(request_id)
        self._proposed.pop(request_id, None)


def follow(tree: TokenTree, emitted: Sequence[int]) -> StepRecord:
    """Which way through the tree the emitted tokens took."""
    children: list[int] = []
    ranks: list[int] = []
    node = ROOT
    for token in emitted:
        below = tree.children(node)
        if not below:
            break
        children.append(len(below))
        tokens = [tree.tokens[child] for child in below]
        if token not in tokens:
            break
        ranks.append(tokens.index(token))
        node = below[ranks[-1]]
    return StepRecord(len(tree), max(tree.depths), tuple(children), tuple(ranks))
