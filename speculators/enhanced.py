"""A trained drafter beside a lookup in the request's own text, which goes first where it is sure.

What repeats, a lookup drafts better than any trained drafter, for nothing and at any length; what is new, only the
drafter can. TensorRT-LLM 1.3 puts a suffix automaton beside its one-model drafters in this way (`sa_config`): a match
of at least `threshold` tokens replaces the drafter's proposal. Here the match is looked up in the n-grams of
`speculators.anpd`, so of several continuations the most frequent one is drafted. Beside a drafter that ends its drafts
where it is unsure, the lengths of the lookup's follow what was accepted of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speculators.anpd import NgramTable
from speculators.base import Speculator
from speculators.draft_length import DraftLength
from speculators.graphs import DrafterRows
from speculators.requests import Requests
from speculators.tree import TokenTree

_NGRAM = 5  # at least: longer contexts tell continuations apart


@dataclass(slots=True)
class _Lookup:
    """Of a request: its n-grams, how much may be drafted from them, and how much was."""

    table: NgramTable
    length: DraftLength
    drafted: int = 0


class EnhancedSpeculator:
    """The methods are those of ``Speculator``.

    Args:
        drafter: drafts where the lookup has no match.
        threshold: shortest match that is used, tokens.
    """

    def __init__(self, drafter: Speculator, threshold: int) -> None:
        self.name, self.needs_hidden = drafter.name, drafter.needs_hidden
        self.max_draft_length, self.max_branches = drafter.max_draft_length, drafter.max_branches
        self.ends_drafts, self.rows_ahead = drafter.ends_drafts, drafter.rows_ahead
        self._drafter, self._threshold = drafter, threshold
        self._lookups: Requests[_Lookup] = Requests(drafter.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._drafter.start(request_id, prompt, rows)  # may refuse
        table = NgramTable(max(_NGRAM, self._threshold + 1))
        length = DraftLength(self.max_draft_length, adaptive=self.ends_drafts)
        self._lookups.start(request_id, _Lookup(table, length))
        table.extend(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = [
            self._looked_up(self._lookups[request_id], budget)
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
        lookup = self._lookups[request_id]
        if lookup.drafted:  # the last token is the target's own
            lookup.length.update(lookup.drafted, lookup.drafted, min(len(accepted) - 1, lookup.drafted))
            lookup.drafted = 0
        lookup.table.extend(accepted)
        self._drafter.observe(request_id, accepted, hidden)

    def finish(self, request_id: int) -> None:
        self._lookups.finish(request_id)
        self._drafter.finish(request_id)

    def _looked_up(self, lookup: _Lookup, budget: int) -> TokenTree:
        tokens = tuple(lookup.table.draft(min(budget, lookup.length.current), self._threshold))
        lookup.drafted = len(tokens)
        return TokenTree.chain(tokens)
