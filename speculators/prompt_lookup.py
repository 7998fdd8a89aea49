"""Prompt lookup: the continuation of an earlier occurrence of the text's last tokens (Saxena 2023).

Look for the last N tokens of the request's own text, prompt and output, earlier in it, and draft what followed
them there; on a miss drop the oldest of them and look again, down to one token. With several occurrences the
oldest one counts, or the newest.

Example:
    >>> speculator = PromptLookupSpeculator(ngram=2, draft_length=3)
    >>> speculator.start(0, [5, 6, 7, 8, 9, 5, 6])
    >>> speculator.propose([0], [3])[0].tokens
    (7, 8, 9)
"""

from __future__ import annotations

from collections.abc import Sequence

from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.requests import Texts
from speculators.tree import TokenTree


class _Text:
    """A growing text, and where each of its n-grams (n = 1..N) that has a successor ends.

    Memory: at most N entries a token.
    """

    def __init__(self, ngram: int, use_oldest: bool) -> None:
        self._ngram, self._use_oldest = ngram, use_oldest
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            end = len(self._tokens)
            for length in range(1, min(self._ngram, end) + 1):
                found = tuple(self._tokens[end - length :])
                if not (self._use_oldest and found in self._ends):
                    self._ends[found] = end
            self._tokens.append(token)

    def draft(self, length: int) -> tuple[int, ...]:
        for size in range(min(self._ngram, len(self._tokens)), 0, -1):
            end = self._ends.get(tuple(self._tokens[-size:]))
            if end is not None:
                return tuple(self._tokens[end : end + length])
        return ()


class PromptLookupSpeculator(Speculator):
    """Drafts chains by prompt lookup; the methods are those of ``Speculator``.

    Args:
        ngram: N, the longest suffix that is looked up, 1 or more.
        draft_length: most tokens drafted a step, 1 or more.
        use_oldest: draft the continuation of the oldest occurrence, not of the newest.

    Raises:
        ValueError: an argument is out of range.
    """

    name = "prompt_lookup"

    def __init__(self, ngram: int = 3, draft_length: int = 5, use_oldest: bool = True) -> None:
        for setting, value in (("ngram", ngram), ("draft_length", draft_length)):
            if value < 1:
                raise ValueError(f"prompt_lookup: {setting} is {value}; it must be 1 or more")
        self.max_draft_length = draft_length
        self._ngram, self._use_oldest = ngram, use_oldest
        self._texts: Texts[_Text] = Texts(self.name)

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._texts.start(request_id, _Text(self._ngram, self._use_oldest), prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            TokenTree.chain(self._texts[request_id].draft(min(budget, self.max_draft_length)))
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._texts.extend(request_id, outcome.emitted)

    def finish(self, request_id: int) -> None:
        self._texts.finish(request_id)
