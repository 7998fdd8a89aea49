"""What the engine asks of a backend: one forward pass over a ragged batch, and a paged KV cache.

A step's batch holds, request after request, the tokens that each contributes: one (plain decoding), one plus
a drafted tree (verification), or a chunk of its prompt (prefill). Every request owns a list of cache blocks;
row `r` of its context lies in block `r // block_size`, at offset `r % block_size`. The forward pass writes
the new rows at `past ..`; rows of rejected drafts are simply overwritten by the next step.

A runner promises that the logits of a token depend on its context alone, bit for bit: not on the rest of the
batch, nor on whether its context came token by token, as a verified chain or as a path of a verified tree, nor
on how the prompt was cut into chunks of two or more tokens. That is what makes speculation lossless in finite
precision. On OpenVINO the promise is kept; on PyTorch up to rounding, since its kernels are chosen by shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 32  # rows in a cache block; fixed by OpenVINO's CPU kernel
SHORTEST_CHUNK = 3  # room for a chunk of two tokens that leaves none alone


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """The part of one request in a forward pass.

    Attributes:
        tokens: T token ids.
        past: rows of this request that are in the cache already.
        blocks: its cache blocks, enough for past + T rows.
        is_prompt: whether this is a chunk of a prompt; otherwise each token is one that decoding would take.
        parents: of a tree with branches, the token that each one follows (an earlier one; of the root, token
            0, any); None for a chain.
        logits_from: first of the T tokens whose logits are wanted (T for none).
        position: of the first token; None: `past`, unless `blocks` leave some of the context out.
        weighed: whether to say how much attention each block gets (see `Runner.block_weights`).
    """

    tokens: Sequence[int]
    past: int
    blocks: Sequence[int]
    is_prompt: bool = False
    parents: Sequence[int] | None = None
    logits_from: int = 0
    position: int | None = None
    weighed: bool = False

    @property
    def positions(self) -> Sequence[int]:
        """Of each token, in a tree by its distance from the root."""
        first = self.past if self.position is None else self.position
        if self.parents is None:
            return range(first, first + len(self.tokens))
        positions = [first]
        for parent in self.parents[1:]:
            positions.append(positions[parent] + 1)
        return positions


@dataclass(frozen=True, slots=True)
class BestLogits:
    """The greatest logit of each row and its token, of equal ones the lowest: all that greedy decoding asks for."""

    tokens: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, logits: NDArray[np.float32]) -> "BestLogits":
        """Those of logits [rows, V]; NaN counts as greatest."""
        tokens = logits.argmax(axis=1)
        return cls(tokens, np.take_along_axis(logits, tokens[:, None], axis=1)[:, 0])

    def __getitem__(self, rows: slice) -> "BestLogits":
        return BestLogits(self.tokens[rows], self.values[rows])


class Runner(Protocol):
    """A compiled target with its KV cache.

    Attributes:
        hidden_layers: whose hidden states `hidden` gives: i is what goes into layer i, -1 what comes out of the final
            norm; maybe none.
        most_weighed: most tokens of an input whose blocks can be weighed; 0: none can.
        one_kind_of_rows: whether a row of a prompt equals, bit for bit, that of the same token decoded.
        gives_best: whether `forward_best` costs less than `forward`: logits lie on a device that is far from the host.
    """

    hidden_layers: Sequence[int]
    most_weighed: int
    one_kind_of_rows: bool
    gives_best: bool
    vocab_size: int
    block_size: int
    num_blocks: int
    max_sequence_length: int

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        """Run one step and return logits [rows, V], the wanted rows of each input one after another.

        The array is valid, and may be written to, until the next call.
        """

    def forward_best(self, batch: Sequence[SequenceInput]) -> BestLogits:
        """Run one step as `forward` does, and return the greatest logit of each row alone."""

    def hidden(self) -> NDArray[np.float32]:
        """Hidden states [tokens, layers, H] of the last step, its inputs one after another, all tokens of each.

        The layers are `hidden_layers`, in their order.
        """

    def block_weights(self, index: int) -> NDArray[np.float32]:
        """Attention that the blocks of input `index` of the last step got, [blocks]; of one that was weighed.

        It is summed over layers, heads and the input's tokens.
        """

    def commit(self, index: int, kept: Sequence[int]) -> None:
        """Make the tokens `kept` of input `index` of the last step the rows `past ..` of its request.

        Keeps the accepted path of a tree; to be called before the next step.
        """
