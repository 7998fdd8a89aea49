"""What became of one step of a request, as its speculators are told: everything that the target knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speculators.tree import EMPTY, TokenTree


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """One step of one request. Arrays are valid during the call that they are handed to.

    Rows are the tokens that the target has run in this step, R of them: those that it read, the last one being the root
    of the tree if it has emitted any, then the tree's nodes. Row `R - 1 - len(tree)` is the root, the one after it node
    0.

    Attributes:
        emitted: the tokens of `path` and one of the target's own after them, as far as they were emitted; none where a
            part of the prompt was read.
        tree: what was verified, whoever proposed it; probe nodes included.
        path: its accepted nodes, from the root's child downwards.
        kept: rows that stay in the target's cache, in order; the last token of `emitted` was drawn from the last one.
        hidden: float ``[R, H]`` by layer: i is what goes into layer i, -1 what comes out of the final norm. Layers that
            some speculator needs.
        target_tokens: the target's likeliest tokens at the root and at every node, accepted or not, int ``[len(tree) +
            1, k]``, best first; on the accepted path, the first one is what was emitted after it, which of a request
            that samples is a sample. k is the greatest number that a speculator needs; None where nothing was emitted
            or none needs any.
        block_weights: attention that each block of the request's cache got from the rows of this step, float [blocks],
            in the order of its context, 0 of those that hold nothing yet; summed over layers, heads and rows. Where
            some speculator needs it, of the last rows of a prompt and of steps of few rows; otherwise None.
        reads_prompt: whether a part of the prompt was read.
        ended: whether the request ends with this step.
    """

    emitted: Sequence[int] = ()
    tree: TokenTree = EMPTY
    path: tuple[int, ...] = ()
    kept: Sequence[int] = ()
    hidden: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    target_tokens: NDArray[np.int64] | None = None
    block_weights: NDArray[np.float32] | None = None
    reads_prompt: bool = False
    ended: bool = False

    @property
    def accepted(self) -> int:
        """How many of the emitted tokens were drafted."""
        return min(len(self.path), len(self.emitted))

    @property
    def drafts_nothing_more(self) -> bool:
        """Whether a drafter has no use for it: the request is at its end, and no prompt was read that others share."""
        return self.ended and not self.reads_prompt

    def features(self, layers: Sequence[int]) -> NDArray[np.float32]:
        """Hidden states of the kept rows, float ``[len(kept), len(layers) * H]``; a copy."""
        return np.concatenate([self.hidden[layer][list(self.kept)] for layer in layers], axis=1)
