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


@dataclass(slots=True)
class DrafterRows:
    """Where a drafter keeps the KV cache rows of one request: in the request's own blocks, beside the target's.

    So they live as long as the target's, and whoever takes over blocks of an ended request finds them there.

    Attributes:
        blocks: cache blocks of the request, numbered alike in both caches.
        drafted: leading rows that hold what the drafter has computed of the text: an earlier request's at first; the
            drafter counts on.
    """

    blocks: Sequence[int] = ()
    drafted: int = 0


@dataclass(frozen=True, slots=True)
class CachedInput:
    """The part of one request in a call of a network with a KV cache.

    Attributes:
        blocks: cache blocks of the request, enough for past + T rows.
        tokens: T token ids.
        past: rows that stay; the new ones take the places after them.
        parents: of a tree, the token that each one follows (of token 0, the root, any); None for a chain.
        outputs_from: first of the T tokens whose outputs are wanted.
        hidden: float ``[T, H]``, for networks that read hidden states.
    """

    blocks: Sequence[int]
    tokens: Sequence[int]
    past: int
    parents: Sequence[int] | None = None
    outputs_from: int = 0
    hidden: NDArray[np.float32] | None = None


class CachedGraph(Protocol):
    """A compiled network with a KV cache."""

    def run(self, batch: Sequence[CachedInput]) -> Arrays:
        """One call for the whole batch; outputs by name, the wanted rows of each input one after another.

        `candidates` int64 ``[rows, k]`` and `log_probs` float ``[rows, k]`` are the likeliest next tokens, best
        first; `hidden` float ``[rows, H]`` is there where the network reads hidden states. Valid until the next call.
        """
