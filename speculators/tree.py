"""The token tree: what a speculator proposes and one target step verifies.

A draft is a set of nodes below an implicit root. The root is the last token that was emitted; the target
has not seen it yet, so a step over n draft nodes runs the target on n + 1 tokens: the root first, then
the nodes in order. Arrays that belong to a step follow that order, so row 0 is the root and row i + 1 is
node i. A chain is a tree in which every node has one child; an empty tree is plain decoding.

The last nodes may be *probes*: the target is run on them, so that the speculator learns what it says there, but they
are never accepted, and do not count as drafts. (Lookahead's window, arXiv 2402.02057, is made of such nodes.)

Example:
    >>> tree = TokenTree(tokens=(7, 9, 4), parents=(ROOT, ROOT, 0))   # two guesses, then one below the first
    >>> tree.children(ROOT), tree.children(0), tree.depths
    ((0, 1), (2,), (1, 1, 2))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ROOT = -1


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Draft nodes below an implicit root.

    Attributes:
        tokens: token id of each node.
        parents: index of each node's parent, in ``ROOT..i - 1`` for node i. Siblings stand in the order
            in which they were drawn.
        proposals: for each parent node (``ROOT`` for the root) whose children were drawn at random, the
            distribution q over the vocabulary, float ``[V]``, that they were drawn from, one after the
            other without replacement. How many children are drawn and which of them are kept
            may depend on what was drawn before them but not on their own tokens, or verification is no
            longer exact. Children of a node that is not in the mapping count as chosen without chance (q
            is a point mass), which is exact wherever they come from. None: all of them do.
        scores: of each node, the log-probability that it is accepted as far as the speculator knows, for those who
            choose among nodes; None: it does not know.
        probes: how many nodes at the end are probes.

    Two trees are equal when tokens, parents and probes are; proposals and scores are not compared.

    Raises:
        ValueError: lengths differ, a parent does not come before its child, a token is negative, proposals name a node
            that does not exist, or there are more probes than nodes.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    proposals: Mapping[int, NDArray[np.float32]] | None = field(default=None, compare=False, repr=False)
    scores: tuple[float, ...] | None = field(default=None, compare=False, repr=False)
    probes: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if len(self.parents) != size:
            raise ValueError(
                f"token tree: {size} tokens but {len(self.parents)} parents; give one parent per token"
            )
        for node, parent in enumerate(self.parents):
            if not ROOT <= parent < node:
                raise ValueError(
                    f"token tree: parent of node {node} is {parent}; it must lie in {ROOT}..{node - 1}"
                )
        if size and min(self.tokens) < 0:
            raise ValueError(f"token tree: token {min(self.tokens)} is negative; token ids start at 0")
        if self.scores is not None and len(self.scores) != size:
            raise ValueError(
                f"token tree: {size} tokens but {len(self.scores)} scores; give one score per token"
            )
        if not 0 <= self.probes <= size:
            raise ValueError(f"token tree: {self.probes} probes among {size} nodes")
        for parent in self.proposals or ():
            if not ROOT <= parent < size:
                raise ValueError(f"token tree: proposal for node {parent}, but nodes are {ROOT}..{size - 1}")

    @classmethod
    def chain(
        cls,
        tokens: Sequence[int],
        proposals: Sequence[NDArray[np.float32]] | None = None,
        scores: Sequence[float] | None = None,
    ) -> TokenTree:
        """A tree of width one: each token is the child of the one before it.

        Args:
            tokens: the drafted tokens, in order.
            proposals: one distribution ``[V]`` per token, the one it was drawn from; None for a
                deterministic draft.
            scores: one per token, see `TokenTree`.
        """
        size = len(tokens)
        known = None if scores is None else tuple(scores)
        if proposals is None:
            return cls(tuple(tokens), tuple(range(ROOT, size - 1)), scores=known)
        if len(proposals) != size:
            raise ValueError(f"token chain: {size} tokens but {len(proposals)} proposals; give one per token")
        drawn = dict(enumerate(proposals, start=ROOT))
        return cls(tuple(tokens), tuple(range(ROOT, size - 1)), drawn, known)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def drafted(self) -> int:
        """Nodes that may be accepted: the first ones, all but the probes."""
        return len(self.tokens) - self.probes

    @property
    def depth(self) -> int:
        """Levels of what is drafted."""
        if not self.tokens or self.is_chain:
            return self.drafted
        return max(self.depths[: self.drafted], default=0)

    @property
    def is_chain(self) -> bool:
        """Whether each node is the child of the one before it (so an empty tree is a chain)."""
        return self.parents == tuple(range(ROOT, len(self.parents) - 1))

    @property
    def depths(self) -> tuple[int, ...]:
        """Distance of each node from the root, 1 for its children; its position is the root's plus this."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return tuple(depths)

    def children(self, node: int) -> tuple[int, ...]:
        """Children of ``node`` (``ROOT`` for the root) that may be accepted, in the order in which they were drawn."""
        drafted = self.parents[: self.drafted] if self.probes else self.parents
        return tuple([child for child, parent in enumerate(drafted) if parent == node])

    def extended(self, by: TokenTree) -> TokenTree:
        """This chain with another one below its last node, whose scores are those of its own nodes alone.

        Raises:
            ValueError: one of them has branches or probes.
        """
        if not (self.is_chain and by.is_chain) or self.probes or by.probes:
            raise ValueError("token tree: only a chain can go on, and only with a chain")
        size, scores = len(self.tokens), None
        if (self.scores is not None or not size) and by.scores is not None:
            end = self.scores[-1] if self.scores else 0.0
            scores = (*(self.scores or ()), *(end + score for score in by.scores))
        drawn = {**(self.proposals or {}), **{size + node: q for node, q in (by.proposals or {}).items()}}
        tokens = (*self.tokens, *by.tokens)
        return TokenTree(tokens, tuple(range(ROOT, len(tokens) - 1)), drawn or None, scores)

    def ancestor_mask(self) -> NDArray[np.bool_]:
        """Who sees whom in the target step, bool ``[n + 1, n + 1]``.

        Entry (i, j) is true when row j is row i itself or one of its ancestors; row and column 0 are the
        root.
        """
        mask = np.eye(len(self.tokens) + 1, dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            mask[node + 1] |= mask[parent + 1]
        return mask

    def truncate(self, size: int) -> TokenTree:
        """The tree of the first ``size`` nodes; the tree itself when it has no more than that.

        Parents come before their children, so what is left is a tree, and siblings drawn first are kept
        first.
        """
        if size < 0:
            raise ValueError(f"token tree: cannot keep {size} nodes; give 0 or more")
        if size >= len(self.tokens):
            return self
        kept = self.proposals and {parent: q for parent, q in self.proposals.items() if parent < size}
        scores = self.scores and self.scores[:size]
        probes = max(0, size - self.drafted)
        return TokenTree(self.tokens[:size], self.parents[:size], kept, scores, probes)


EMPTY = TokenTree((), ())
