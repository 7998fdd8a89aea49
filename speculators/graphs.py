"""What drafters of this room ask of the engine: compiled networks, without and with a KV cache.

Drafting is written here, in terms of these; the engine has the runtimes (`engine.drafters`), so that the same drafter
can run on another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


class Graph(Protocol):
    """A compiled network without state."""

    def __call__(self, inputs: Arrays) -> Arrays:
        """Outputs by name; valid until the next call."""


@dataclass(frozen=True, slots=True)
class SlotInput:
    """The part of one request in a call of a network with a KV cache.

    Attributes:
        slot: which of the network's caches.
        tokens: T token ids.
        past: rows of the slot that stay; the new ones take the places after them.
        parents: of a tree, the token that each one follows (of token 0, the root, any); None for a chain.
        outputs_from: first of the T tokens whose outputs are wanted.
        hidden: float ``[T, H]``, for networks that read hidden states.
    """

    slot: int
    tokens: Sequence[int]
    past: int
    parents: Sequence[int] | None = None
    outputs_from: int = 0
    hidden: NDArray[np.float32] | None = None


class CachedGraph(Protocol):
    """A compiled network with a KV cache for each of `slots` requests.

    Attributes:
        slots: how many.
    """

    slots: int

    def run(self, batch: Sequence[SlotInput]) -> Arrays:
        """One call for the whole batch; outputs by name, the wanted rows of each input one after another.

        `candidates` int64 ``[rows, k]`` and `log_probs` float ``[rows, k]`` are the likeliest next tokens, best
        first; `hidden` float ``[rows, H]`` is there where the network reads hidden states. Valid until the next call.
        """
