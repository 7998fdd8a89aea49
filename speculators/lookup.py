"""Lookups in the request's own text beside a trained drafter, which draft only where they are sure.

What repeats, a lookup drafts better than any trained drafter, for nothing and at any length; what is new, only the
drafter can. TensorRT-LLM 1.3 puts a suffix automaton beside its one-model drafters in this way (`sa_config`): a match
of at least `threshold` tokens replaces the drafter's proposal. Here the match is looked up in the n-grams of
`speculators.anpd`, so of several continuations the most frequent one is drafted.

`ChainedLookup` takes turns with the drafter instead: what the drafter has drafted counts as text, so a name that the
drafter begins the lookup ends, and where a text has gone on in several ways, the drafter says in which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from speculators.anpd import AnpdSpeculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Requests
from speculators.tree import EMPTY, TokenTree

_NGRAM = 5  # at least: longer contexts tell continuations apart
_SURE = 0.5  # likelihood of a token below which the drafter is asked for it
# Tokens beside which those of a request count: one that was wrong does not end it, two in a row may.
_FEW = 8.0
_FORGETTING = 0.9  # of how its lookups fared, with each step


class SureLookup(AnpdSpeculator):
    """ANPD that drafts nothing where it finds less than `threshold` tokens again.

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


@dataclass(slots=True)
class _Fared:
    """How the lookups of a request came true: tokens that held, and those that were expected to.

    `chain` is the draft of this step as it is known, `mine` the places and likelihoods of the lookup's tokens in it.
    """

    held: float = 0.0
    expected: float = 0.0
    chain: tuple[int, ...] = ()
    mine: list[tuple[int, float]] = field(default_factory=list)

    @property
    def trust(self) -> float:
        """What likelihoods are multiplied by: less than 1 where less came true than was expected."""
        return min(1.0, (self.held + _FEW) / (self.expected + _FEW))

    def learn(self, emitted: Sequence[int]) -> None:
        """See what a step has emitted."""
        self.held, self.expected = _FORGETTING * self.held, _FORGETTING * self.expected
        pairs = zip(self.chain, emitted, strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for place, chance in self.mine:
            if place <= right and place < len(emitted):
                self.held += place < right
                self.expected += chance
        self.chain, self.mine = (), []


class ChainedLookup(SureLookup):
    """A lookup that takes turns with a drafter; see `Speculator.extend`.

    Args:
        threshold: shortest match that is used, tokens; what was drafted before counts as text.
        draft_length: most tokens of a whole draft.
        least: log-probability of a draft's end below which it does not go on; if there is one, it also believes less
            where its tokens were wrong lately.
    """

    in_turns = True

    def __init__(self, threshold: int, draft_length: int, least: float = -math.inf) -> None:
        super().__init__(threshold, draft_length)
        self._least, self.ends_drafts = least, least > -math.inf
        self._fared: Requests[_Fared] = Requests(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        super().start(request_id, prompt, rows)
        self._fared.start(request_id, _Fared())

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return self.extend(request_ids, [EMPTY] * len(request_ids), budgets)

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        return [self._found(*each) for each in zip(request_ids, drafts, budgets, strict=True)]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        super().observe(request_id, outcome)
        if outcome.emitted:
            self._fared[request_id].learn(outcome.emitted)

    def finish(self, request_id: int) -> None:
        super().finish(request_id)
        self._fared.finish(request_id)

    def _found(self, request_id: int, draft: TokenTree, budget: int) -> TokenTree:
        table, fared = self._tables[request_id], self._fared[request_id]
        trust = fared.trust if self.ends_drafts else 1.0
        before, score = draft.scores[-1] if draft.scores else 0.0, 0.0
        tokens: list[int] = []
        scores: list[float] = []
        most = min(budget, self.max_draft_length - len(draft))
        for token, chance in table.likely(most, self._threshold, draft.tokens):
            believed = trust * chance
            if believed < _SURE:
                break
            score += math.log(believed)
            if before + score < self._least:
                break
            fared.mine.append((len(draft) + len(tokens), chance))
            tokens.append(token)
            scores.append(score)
        fared.chain = (*draft.tokens, *tokens)
        return TokenTree.chain(tokens, scores=scores)
