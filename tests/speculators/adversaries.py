"""Speculators that test the engine rather than serve it: random, always right, or always wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.tree import ROOT, TokenTree


class RandomDrafter(Speculator):
    """Proposes random trees of random tokens, repeated siblings included.

    Args:
        vocabulary: number of tokens.
        max_draft_length: most nodes of a tree.
        drawn: draw children from random distributions (without replacement) and say so in the proposals.
        seed: of everything random.
    """

    name = "random"
    requirements = Requirements(max_branches=64)

    def __init__(self, vocabulary: int, max_draft_length: int, drawn: bool, seed: int) -> None:
        self.max_draft_length = max_draft_length
        self._vocabulary, self._drawn = vocabulary, drawn
        self._random = np.random.default_rng(seed)
        self.running: set[int] = set()

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        if request_id in self.running:
            raise ValueError(f"request {request_id} is already running")
        self.running.add(request_id)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        assert self.running.issuperset(request_ids)
        return [self._tree(min(budget, self.max_draft_length)) for budget in budgets]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        if request_id not in self.running:
            raise KeyError(request_id)

    def finish(self, request_id: int) -> None:
        self.running.remove(request_id)

    def _tree(self, most: int) -> TokenTree:
        size = int(self._random.integers(0, most + 1))
        parents = tuple(int(self._random.integers(ROOT, node)) for node in range(size))
        if not self._drawn:
            return TokenTree(tuple(self._random.integers(0, self._vocabulary, size).tolist()), parents)
        proposals = {parent: self._random.random(self._vocabulary, np.float32) ** 4 for parent in parents}
        left = {parent: proposal.astype(np.float64) for parent, proposal in proposals.items()}
        tokens = []
        for parent in parents:
            token = int(self._random.choice(self._vocabulary, p=left[parent] / left[parent].sum()))
            left[parent][token] = 0
            tokens.append(token)
        return TokenTree(tuple(tokens), parents, proposals)


class OracleDrafter(Speculator):
    """Proposes chains of what plain decoding would emit, as far as it is known, then of token 0.

    Args:
        outputs: for each prompt the tokens that plain decoding emits after it.
        max_draft_length: length of the chains.
        shift: added to every token, modulo ``vocabulary``: 0 is always right, anything else always wrong.
        vocabulary: number of tokens.
    """

    name = "oracle"
    requirements = Requirements(max_branches=64)

    def __init__(
        self,
        outputs: Mapping[tuple[int, ...], Sequence[int]],
        max_draft_length: int,
        shift: int,
        vocabulary: int,
    ) -> None:
        self.max_draft_length = max_draft_length
        self._outputs, self._shift, self._vocabulary = outputs, shift, vocabulary
        self._left: dict[int, list[int]] = {}

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        if request_id in self._left:
            raise ValueError(f"request {request_id} is already running")
        self._left[request_id] = list(self._outputs[tuple(prompt)])

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = []
        for request_id, budget in zip(request_ids, budgets, strict=True):
            length = min(budget, self.max_draft_length)
            known = self._left[request_id][:length]
            tokens = known + [0] * (length - len(known))
            trees.append(TokenTree.chain([(token + self._shift) % self._vocabulary for token in tokens]))
        return trees

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        del self._left[request_id][: len(outcome.emitted)]

    def finish(self, request_id: int) -> None:
        del self._left[request_id]


class RandomChains(RandomDrafter):
    """As `RandomDrafter`, without branches."""

    def _tree(self, most: int) -> TokenTree:
        return TokenTree.chain(super()._tree(most).tokens)
