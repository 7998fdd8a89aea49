"""The token tree that brings most tokens for its time: Sequoia's, by measured acceptance and measured costs.

A node is accepted if all guesses on its path are, so its value is the product of their rank acceptances, and a tree
brings the sum of the values of its nodes beyond the token that is certain (arXiv 2402.12374, section 3.1: guesses are
right or wrong independently of those before them). Sequoia finds the best tree of n nodes by dynamic programming, since
there a node's second child can only be drawn after its first. Guesses that are ranked have no such order, and a node is
never worth more than its parent. So the n most valuable nodes are a tree, and no tree of n nodes is worth more: the
dynamic programme finds the same, and every tree holds the smaller ones. One list of nodes, the most valuable first, is
all trees at once, for each depth that is not to be exceeded.

How large and how deep a tree should be follows from what it costs (section 3.3): the one with most tokens a
millisecond, of verifying its nodes and of drafting its levels. As contexts grow, reading them is a greater share of a
step whatever is verified; where one more row then costs relatively less, trees grow.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.control.table import CostTable
from engine.plan import Trees, TreeSize
from planner.plan.predict import Predictor
from planner.plan.profiles import Profile
from planner.plan.ranks import has_choices, rank_acceptance

Floats = NDArray[np.float64]
Path = tuple[int, ...]
_MOST = 63  # nodes: what TensorRT-LLM's Medusa engines take
_LEAST = 1e-3  # value of a node that is looked at
_NOTHING = 1e-3
_DIGITS = 4


@dataclass(frozen=True)
class Family:
    """Trees that each hold the smaller ones: the first n nodes, as far as they are not too deep.

    Attributes:
        paths: of nodes, the most valuable first; a parent comes before its children.
        values: the probability that each is accepted.
    """

    paths: Sequence[Path]
    values: Sequence[float]

    @property
    def depth(self) -> int:
        """Levels of the whole of it."""
        return max(map(len, self.paths), default=0)

    def tokens(self, depth: int) -> Floats:
        """What trees of 0, 1, ... nodes on at most `depth` levels bring in a step, the certain token included."""
        values = [value for path, value in zip(self.paths, self.values, strict=True) if len(path) <= depth]
        return np.concatenate([[1.0], 1.0 + np.cumsum(values)])


def family(acceptance: Floats, nodes: int, depth: int | None = None) -> Family:
    """The most valuable nodes there can be.

    Args:
        acceptance: ``[levels, ranks]``, see `planner.plan.ranks`.
        nodes: most of them.
        depth: most levels, as many as there are if None.
    """
    levels = len(acceptance) if depth is None else min(depth, len(acceptance))
    paths: list[Path] = []
    values: list[float] = []
    queue: list[tuple[float, int, Path]] = []

    def offer(path: Path, value: float) -> None:
        if len(path) < levels:
            for rank, chance in enumerate(acceptance[len(path)].tolist()):
                # Of equal ones the shallower: it is drafted sooner, and a parent before its child.
                heapq.heappush(queue, (-value * chance, len(path) + 1, (*path, rank)))

    offer((), 1.0)
    while queue and len(paths) < nodes and -queue[0][0] > 0:
        negative, _, path = heapq.heappop(queue)
        paths.append(path)
        values.append(-negative)
        offer(path, -negative)
    return Family(paths, values)


def best_size(
    trees: Family, verify: CostTable, draft: CostTable | None, context: float, batch: int
) -> TreeSize:
    """The size and depth with most tokens a millisecond; where a thousandth is all there is, the smaller.

    A draft of n levels costs what one of n nodes does: drafters run a level at a time, or all at once.
    """
    most = max(verify.sizes) - 1
    steps = verify.milliseconds(context, batch, 1 + np.arange(most + 1))[0]
    chosen = _size(context, batch, 0, 0, 1.0, float(steps[0]), 0.0)
    for depth in range(1, trees.depth + 1):
        tokens = trees.tokens(depth)[: most + 1]
        drafting = 0.0
        if draft is not None:
            inside = min(max(depth, min(draft.sizes)), max(draft.sizes))
            drafting = float(draft.milliseconds(context, batch, [inside])[0, 0])
        for nodes in range(depth, len(tokens)):
            found = _size(context, batch, nodes, depth, float(tokens[nodes]), float(steps[nodes]), drafting)
            if _rate(found) > _rate(chosen) * (1 + _NOTHING):
                chosen = found
    return chosen


def planned_trees(profile: Profile, temperature: float) -> Trees | None:
    """Trees of a profiled deployment at every context and batch that was measured; None where its tree has no names.

    Raises:
        ProfileError: the temperature was not profiled, or costs are incomplete.
    """
    if not has_choices(profile.speculation):
        return None
    acceptance = rank_acceptance(profile.at(temperature), profile.speculation)
    if acceptance is None:
        return None
    predictor = Predictor(profile, samples=0)
    most = min(_MOST, max(predictor.verify.sizes) - 1)
    whole = family(acceptance, most)
    kept = sum(value >= _LEAST for value in whole.values)
    if not kept:
        return None
    trees = Family(whole.paths[:kept], whole.values[:kept])
    return Trees(
        choices=list(trees.paths),
        acceptance=[round(value, _DIGITS) for value in trees.values],
        sizes=[
            best_size(trees, predictor.verify, predictor.draft, context, batch)
            for context, batch in _measured(predictor)
        ],
    )


def one_tree(trees: Trees, context: float, concurrencies: Iterable[int]) -> list[Path]:
    """The tree for engines that draft one at every load; empty if none pays.

    Of those that are best for a number of requests, the smallest: where fewer run, its rows are the likeliest ones, and
    what more would bring is little; where more run, more rows would cost.

    Args:
        trees: of the plan.
        context: the nearest one that was measured counts.
        concurrencies: of the loads; the next larger batch that was measured counts.
    """
    near = min({size.context for size in trees.sizes}, key=lambda known: abs(known - context))
    here = sorted((size for size in trees.sizes if size.context == near), key=lambda size: size.batch)
    found = [next((size for size in here if size.batch >= level), here[-1]) for level in concurrencies]
    drafting = [size for size in found if size.nodes]
    if not drafting:
        return []
    smallest = min(drafting, key=lambda size: size.nodes)
    return trees.tree(smallest.nodes, smallest.depth)


def _measured(predictor: Predictor) -> Iterator[tuple[int, int]]:
    for context in predictor.verify.contexts:
        for batch in predictor.verify.batches:
            yield context, batch


def _size(
    context: float, batch: int, nodes: int, depth: int, tokens: float, step: float, draft: float
) -> TreeSize:
    return TreeSize(
        context=round(context),
        batch=batch,
        nodes=nodes,
        depth=depth,
        tokens_per_step=round(tokens, _DIGITS),
        step_ms=round(step, _DIGITS),
        draft_ms=round(draft, _DIGITS),
    )


def _rate(size: TreeSize) -> float:
    return size.tokens_per_step / (size.step_ms + size.draft_ms)
