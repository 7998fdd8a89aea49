"""Drafting with P-EAGLE: a block in one call for the whole batch.

Rows of the text are read as EAGLE's are (`speculators.eagle.draft`). Behind the newest one stand the rows of the block
that are not known yet, masks, in the same call; the rows that are read next overwrite them. A block does not see what
others have drafted, so in turns its guesses are those for their places, as with Medusa's heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from speculators.eagle.draft import EagleDrafter, Rows
from speculators.graphs import CachedGraph, CachedInput, Graph
from speculators.growth import TreeGrowth, TreeShape, goes_on
from speculators.outcome import StepOutcome
from speculators.tree import EMPTY, TokenTree
from speculators.tree_drafter import Guess


class PEagleDrafter(EagleDrafter):
    """The methods are those of ``Speculator``.

    Args:
        graph: the compiled drafter; outputs ``candidates`` and ``log_probs``.
        fusion: input ``features`` float ``[rows, layers * H]``, output ``hidden`` with a row more, the mask's.
        shape: the chain.
        hidden_layers: hidden states of the target that it reads.
        mask_token: read in place of a token that is not known yet.
    """

    def __init__(
        self,
        graph: CachedGraph,
        fusion: Graph,
        shape: TreeShape,
        hidden_layers: tuple[int, ...],
        mask_token: int,
    ) -> None:
        super().__init__("peagle", graph, fusion, shape, hidden_layers)
        self._mask_token = mask_token
        self._mask: Rows | None = None
        self._guesses: dict[int, list[Guess]] = {}  # of this step, asked for in turns

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        growths = [TreeGrowth(self._shape, budget) for budget in budgets]
        going = [
            (request_id, growth, min(budget, self._shape.depth))
            for request_id, growth, budget in zip(request_ids, growths, budgets, strict=True)
            if growth.frontier
        ]
        blocks = self._blocks([(request_id, size) for request_id, _, size in going])
        for (_, growth, _), (candidates, log_probs) in zip(going, blocks, strict=True):
            for guesses, scores in zip(candidates, log_probs, strict=True):
                if growth.frontier:
                    growth.grow(guesses[None], scores[None])
        return [growth.tree() for growth in growths]

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        able = [goes_on(self._shape, draft, 1) for draft in drafts]
        asked = list(zip(request_ids, drafts, budgets, able, strict=True))
        new = [
            (request_id, min(len(draft) + budget, self._shape.depth))
            for request_id, draft, budget, goes in asked
            if goes and request_id not in self._guesses
        ]
        for (request_id, _), (candidates, log_probs) in zip(new, self._blocks(new), strict=True):
            scores = np.minimum(log_probs[:, 0], 0.0).tolist()
            self._guesses[request_id] = list(zip(candidates[:, 0].tolist(), scores, strict=True))
        found = [EMPTY] * len(asked)
        for place, (request_id, draft, _, goes) in enumerate(asked):
            if goes and len(draft) < len(guesses := self._guesses[request_id]):
                token, score = guesses[len(draft)]
                found[place] = TokenTree.chain([token], scores=[score])
        return found

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._guesses.pop(request_id, None)
        super().observe(request_id, outcome)

    def finish(self, request_id: int) -> None:
        self._guesses.pop(request_id, None)
        super().finish(request_id)

    def _blocks(self, asked: Sequence[tuple[int, int]]) -> list[tuple[NDArray[np.int64], Rows]]:
        """Candidates and log-probabilities ``[size, k]`` of the next tokens of requests."""
        if not asked:
            return []
        states = [self._states[request_id] for request_id, _ in asked]
        read = self._read([(state, state.waiting) for state in states])
        sizes = [size for _, size in asked]
        found = self._graph.run([self._block(rows, size) for rows, size in zip(read, sizes, strict=True)])
        ends = np.cumsum(sizes)[:-1]
        candidates, log_probs = (np.split(found[name], ends) for name in ("candidates", "log_probs"))
        return list(zip(candidates, log_probs, strict=True))

    def _block(self, read: CachedInput, size: int) -> CachedInput:
        """The rows of the text that come next, the last of which drafts a token, and masks that draft the others."""
        assert read.hidden is not None and self._mask is not None
        masks = size - 1
        hidden = np.concatenate([read.hidden, np.repeat(self._mask, masks, axis=0)])
        return replace(read, tokens=[*read.tokens, *[self._mask_token] * masks], hidden=hidden)

    def _fuse(self, features: Rows) -> Rows:
        fused = super()._fuse(features)
        self._mask = fused[-1:]
        return fused[:-1]
