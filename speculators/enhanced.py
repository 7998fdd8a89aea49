"""A trained drafter beside a lookup in the request's own text, which goes first where it is sure.

What repeats, a lookup drafts better than any trained drafter, for nothing and at any length; what is new, only the
drafter can. TensorRT-LLM 1.3 puts a suffix automaton beside its one-model drafters in this way (`sa_config`): a match
of at least `threshold` tokens replaces the drafter's proposal. Here the match is looked up in the n-grams of
`speculators.anpd`, so of several continuations the most frequent one is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speculators.anpd import NgramTable
from speculators.base import Speculator
from speculators.requests import Requests
from speculators.tree import TokenTree

_NGRAM = 5  # at least: longer contexts tell continuations apart


class EnhancedSpeculator:
    """The methods are those of ``Speculator``.

    Args:
        drafter: drafts where the lookup has no match.
        threshold: shortest match that is used, tokens.
    """

    def __init__(self, drafter: Speculator, threshold: int) -> None:
        self.name, self.needs_hidden = drafter.name, drafter.needs_hidden
        self.max_draft_length, self.max_branches = drafter.max_draft_length, drafter.max_branches
        self._drafter, self._threshold = drafter, threshold
        self._tables: Requests[NgramTable] = Requests(drafter.name)

    def start(self, request_id: int, prompt: Sequence[int]) -> None:
        self._drafter.start(request_id, prompt)  # may refuse
        table = NgramTable(max(_NGRAM, self._threshold + 1))
        self._tables.start(request_id, table)
        table.extend(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = [
            TokenTree.chain(tuple(self._tables[request_id].draft(budget, self._threshold)))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]
        missed = [place for place, tree in enumerate(trees) if not len(tree)]
        if missed:
            drafted = self._drafter.propose(
                [request_ids[place] for place in missed], [budgets[place] for place in missed]
            )
            for place, tree in zip(missed, drafted, strict=True):
                trees[place] = tree
        return trees

    def observe(
        self, request_id: int, accepted: Sequence[int], hidden: NDArray[np.float32] | None = None
    ) -> None:
        self._tables[request_id].extend(accepted)
        self._drafter.observe(request_id, accepted, hidden)

    def finish(self, request_id: int) -> None:
        self._tables.finish(request_id)
        self._drafter.finish(request_id)
