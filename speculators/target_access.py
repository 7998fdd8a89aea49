"""How a speculator that drafts with the target itself runs it: on rows of a request's cache that it chooses.

A window of the context has fewer rows than positions, so both are given. What is computed lies in rows behind those
that the target has computed for good, and is overwritten by the next step.

Example: draft one token that sees the first block of the cache and the last one, of 32 rows each, four of them filled::

    places, seen = (0, length // 32), 32 + length % 32
    logits = target.run([TargetInput(request_id, [token], seen, length, places)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TargetInput:
    """The part of one request in a run of the target.

    Attributes:
        request_id: whose cache.
        tokens: T token ids, each the successor of the one before it.
        past: rows that the first of them sees, at the beginning of `places`; the new rows come behind them.
        position: of the first token.
        places: which blocks of the request's cache are seen, by their place in its context (block b holds rows
            ``b * block_size`` and on), enough for past + T rows; None: all of them.
        outputs_from: first of the T tokens whose logits are wanted.
    """

    request_id: int
    tokens: Sequence[int]
    past: int
    position: int
    places: Sequence[int] | None = None
    outputs_from: int = 0


class TargetCopy(Protocol):
    """The target in another precision, over the target's own cache, as the engine opens it."""

    def forward(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Run it once; called by `TargetAccess.run` alone."""


class TargetAccess(Protocol):
    """The target, as speculators see it.

    Attributes:
        block_size: rows of a cache block.
        vocab_size: number of tokens.
    """

    @property
    def block_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...

    def computed(self, request_id: int) -> int:
        """Rows of a request that the target has computed for good."""

    def run(self, batch: Sequence[TargetInput], copy: TargetCopy | None = None) -> NDArray[np.float32]:
        """Run the target once, or a copy of it; to be called while drafts are proposed or caught up with.

        Returns:
            Logits ``[rows, V]``, the wanted rows of each input one after another, valid until the next run.

        Raises:
            ValueError: rows would be written that the target has computed for good, or that the request does not have.
            RuntimeError: no drafts are being made.
        """
