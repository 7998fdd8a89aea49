"""A lookup in the request's own text, which drafts only where it is sure: the one to ask before a trained drafter.

What repeats, a lookup drafts better than any trained drafter, for nothing and at any length; what is new, only the
drafter can. TensorRT-LLM 1.3 puts a suffix automaton beside its one-model drafters in this way (`sa_config`): a match
of at least `threshold` tokens replaces the drafter's proposal. Here the match is looked up in the n-grams of
`speculators.anpd`, so of several continuations the most frequent one is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence

from speculators.anpd import AnpdSpeculator
from speculators.tree import TokenTree

_NGRAM = 5  # at least: longer contexts tell continuations apart


class SureLookup(AnpdSpeculator):
    """ANPD that drafts nothing where it finds less than so many tokens again.

    Args:
        threshold: shortest match that is used, tokens.
        draft_length: most tokens drafted a step.
    """

    name = "lookup"

    def __init__(self, threshold: int, draft_length: int) -> None:
        super().__init__(max(_NGRAM, threshold + 1), draft_length)
        self._threshold = threshold

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            TokenTree.chain(tuple(self._tables[request_id].draft(budget, self._threshold)))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]
