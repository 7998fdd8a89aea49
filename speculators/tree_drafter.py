"""What drafters have in common that draft trees of one shape, and chains also in turns with others."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

from speculators.base import Requirements, Speculator
from speculators.growth import TreeShape, max_branches
from speculators.requests import Requests, State
from speculators.tree import EMPTY, TokenTree

Guess = tuple[int, float]
"""A token and its log-probability."""


class TreeDrafter(Speculator, Generic[State]):
    """The methods are those of ``Speculator``.

    Args:
        name: the method.
        shape: the tree.
        hidden_layers: hidden states of the target that it reads.
    """

    rows_ahead: ClassVar[int | None] = None
    """See `Requirements`."""

    def __init__(self, name: str, shape: TreeShape, hidden_layers: tuple[int, ...]) -> None:
        self.name, self.max_draft_length = name, shape.total
        self.requirements = self.required(shape, hidden_layers)
        self.ends_drafts = shape.least > -math.inf
        self._chosen = shape
        self._states: Requests[State] = Requests(name)

    @property
    def _shape(self) -> TreeShape:
        return self._chosen if self.ends_drafts else self._chosen.to_the_end()

    @classmethod
    def required(cls, shape: TreeShape, hidden_layers: tuple[int, ...]) -> Requirements:
        """What a drafter of such trees needs."""
        return Requirements(
            hidden_layers=hidden_layers, max_branches=max_branches(shape), rows_ahead=cls.rows_ahead
        )

    def extend(
        self, request_ids: Sequence[int], drafts: Sequence[TokenTree], budgets: Sequence[int]
    ) -> list[TokenTree]:
        if self._shape.most_children > 1:
            return super().extend(request_ids, drafts, budgets)
        guesses = self._next([self._states[request_id] for request_id in request_ids], drafts)
        return [
            EMPTY if guess is None else TokenTree.chain([guess[0]], scores=[guess[1]]) for guess in guesses
        ]

    def finish(self, request_id: int) -> None:
        self._states.finish(request_id)

    @abstractmethod
    def _next(self, states: Sequence[State], drafts: Sequence[TokenTree]) -> list[Guess | None]:
        """What comes after each chain; None where it does not go on."""
