"""Growing token trees from ranked candidates, level by level.

A drafter that knows how likely its guesses are grows a tree around the likeliest ones (EAGLE-2, arXiv 2406.16858,
section 4): the score of a node is the sum of the log-probabilities on its path, each level goes on from its best
nodes, and of everything that was guessed the best nodes are kept. As a child never scores above its parent, what is
kept is a tree; a chain is the case of one child. A published tree instead says by ranks which guesses there are
(Medusa's choices, arXiv 2401.10774: (0, 2) is the third guess below the first one).

Example:
    >>> growth = TreeGrowth(Likeliest(depth=2, children=(2, 2), width=1, total=3), budget=3)
    >>> growth.grow([[7, 9]], [[-0.1, -3.0]])                # the root's children; node 0 goes on
    >>> growth.frontier, growth.grow([[4, 5]], [[-0.2, -4.0]])
    ([0], None)
    >>> growth.tree()
    TokenTree(tokens=(7, 4, 9), parents=(-1, 0, -1))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from speculators.tree import ROOT, TokenTree


class TreeShape(Protocol):
    """Which guesses there are.

    Attributes:
        depth: levels.
        most_children: most guesses below one node.
        total: most nodes.
    """

    @property
    def depth(self) -> int: ...
    @property
    def most_children(self) -> int: ...
    @property
    def total(self) -> int: ...

    def ranks(self, path: tuple[int, ...]) -> Sequence[int]:
        """Ranks of the guesses below the node that ranks lead to."""

    @property
    def width(self) -> int | None:
        """Nodes of a level that go on, the best ones; None: all that have guesses below them."""

    @property
    def least(self) -> float:
        """Score below which a node does not go on."""

    def to_the_end(self) -> TreeShape:
        """The same one, whose nodes go on whatever their score."""


@dataclass(frozen=True)
class Likeliest:
    """The likeliest nodes of each step.

    Attributes:
        depth: levels.
        children: guesses below a node, level by level.
        width: nodes of a level that go on.
        total: nodes that are kept.
        least: score, the log-probability of a path, below which a node does not go on.
    """

    depth: int
    children: tuple[int, ...]
    width: int
    total: int
    least: float = -math.inf

    @classmethod
    def chain(cls, length: int, least: float = -math.inf) -> Likeliest:
        """A chain of the likeliest tokens."""
        return cls(length, (1,) * length, 1, length, least)

    @property
    def most_children(self) -> int:
        """Most guesses below one node."""
        return max(self.children)

    def ranks(self, path: tuple[int, ...]) -> Sequence[int]:
        """All of the level's."""
        return range(self.children[len(path)]) if len(path) < self.depth else ()

    def to_the_end(self) -> Likeliest:
        """With no score that is too low."""
        return self if self.least == -math.inf else replace(self, least=-math.inf)


class Choices:
    """A published tree.

    Args:
        paths: the ranks that lead to each node; a node's parent is among them.

    Raises:
        ValueError: there is no path, or a path's beginning is missing.
    """

    width = None
    least = -math.inf

    def __init__(self, paths: Sequence[Sequence[int]]) -> None:
        known = {tuple(path) for path in paths} - {()}
        orphans = sorted(path for path in known if len(path) > 1 and path[:-1] not in known)
        if orphans or not known:
            what = (
                f"choices: {list(orphans[0])} is there without {list(orphans[0][:-1])}"
                if orphans
                else "no choices"
            )
            raise ValueError(f"{what}; give every path with all its beginnings")
        self.total = len(known)
        self.depth = max(map(len, known))
        self.most_children = 1 + max(max(path) for path in known)
        self._ranks: dict[tuple[int, ...], list[int]] = {}
        for path in sorted(known):
            self._ranks.setdefault(path[:-1], []).append(path[-1])

    def ranks(self, path: tuple[int, ...]) -> Sequence[int]:
        """Those of the published tree."""
        return self._ranks.get(path, ())

    def to_the_end(self) -> Choices:
        """It always goes on."""
        return self


def max_branches(shape: TreeShape) -> int:
    """Most nodes of a tree that are not the first child of their parent; 0 for chains."""
    return 0 if shape.most_children == 1 else shape.total - 1


def goes_on(shape: TreeShape, draft: TokenTree, levels: int) -> bool:
    """Whether a drafter of chains goes on with one that is drafted in turns, for the price of `levels` levels.

    What others have drafted takes a level a token to read. It is worth its time where a level of a draft of one's own
    would be, hence a draft must be the likelier the more there is to read.
    """
    likely = draft.scores[-1] if draft.scores else 0.0
    return len(draft) < shape.depth and likely >= shape.least + math.log(max(1, levels))


class TreeGrowth:
    """One request's tree while it is drafted.

    Attributes:
        frontier: nodes that go on, `ROOT` at first; empty when the tree has all its levels.
        tokens, parents: of all guesses so far, as in `TokenTree`.

    Args:
        shape: which guesses there are.
        budget: most nodes of the tree, 0 or more.
    """

    def __init__(self, shape: TreeShape, budget: int) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._scores: list[float] = []
        self._paths: list[tuple[int, ...]] = []
        self._shape = shape
        self._size = min(budget, shape.total)
        self.frontier = [ROOT] if self._size else []

    def grow(self, candidates: ArrayLike, log_probs: ArrayLike) -> None:
        """Add a level.

        Args:
            candidates: int ``[len(frontier), k]``, guesses below each node of the frontier, the likeliest first;
                k is at least the shape's `most_children`.
            log_probs: float ``[len(frontier), k]``.
        """
        first = len(self.tokens)
        guesses, scores = np.asarray(candidates).tolist(), np.asarray(log_probs).tolist()
        for row, node in enumerate(self.frontier):
            path = self._paths[node] if node != ROOT else ()
            score = self._scores[node] if node != ROOT else 0.0
            for rank in self._shape.ranks(path):
                self.tokens.append(guesses[row][rank])
                self.parents.append(node)
                self._scores.append(score + min(scores[row][rank], 0.0))
                self._paths.append((*path, rank))
        self.frontier = self._going_on(range(first, len(self.tokens)))

    def tree(self) -> TokenTree:
        """The best nodes, the better ones first."""
        kept = self._best(range(len(self.tokens)), self._size)
        place = {node: index for index, node in enumerate(kept)} | {ROOT: ROOT}
        return TokenTree(
            tuple(self.tokens[node] for node in kept),
            tuple(place[self.parents[node]] for node in kept),
            scores=tuple(self._scores[node] for node in kept),
        )

    def _going_on(self, level: range) -> list[int]:
        depth = len(self._paths[level[0]]) if level else self._shape.depth
        if depth >= min(self._shape.depth, self._size):
            return []
        # Below a node that is not kept nothing is: its children score no better and come after it.
        kept = set(self._best(range(len(self.tokens)), self._size))
        able = [
            node
            for node in level
            if node in kept
            and self._scores[node] >= self._shape.least
            and self._shape.ranks(self._paths[node])
        ]
        width = len(able) if self._shape.width is None else self._shape.width
        return sorted(self._best(able, width))

    def _best(self, nodes: Sequence[int], count: int) -> list[int]:
        """Best first; of equal ones the first, so that parents come before their children."""
        return sorted(nodes, key=lambda node: (-self._scores[node], node))[:count]
