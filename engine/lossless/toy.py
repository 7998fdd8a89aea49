"""A target and a drafter small enough that every sequence can be enumerated.

Both depend on the whole context, so an error that only shows between positions shows; both have tokens of
probability zero, not always the same ones; and temperature, top-k and top-p are those of the engine.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.request import SamplingParams
from engine.sampling import Distribution, target_distribution
from speculators.tree import ROOT, TokenTree

Context = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of drafting, and the target that it drafts for.

    Attributes:
        name: shown in reports.
        drawn: children are drawn from the drafter's distribution without replacement; otherwise they are its
            likeliest tokens, a deterministic draft.
        parents: the shape of the draft tree, as ``TokenTree.parents``.
        vocabulary: number of tokens, above the tree's width.
        length: tokens in a sequence; the last steps draft less, so as not to go beyond it.
        params: sampling parameters of the target.
    """

    name: str
    drawn: bool
    parents: tuple[int, ...]
    vocabulary: int
    length: int
    params: SamplingParams


class ToyModel:
    """Target and drafter tables for every context of a scenario, random but fixed by ``seed``."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self._target: dict[Context, Distribution] = {}
        self._proposal: dict[Context, Distribution] = {}
        self._cumulative: dict[Context, list[float]] = {}
        self._likeliest: dict[Context, list[int]] = {}
        self._steps: dict[tuple[Context, tuple[int, ...]], tuple[TokenTree, list[Distribution]]] = {}
        self._shapes = [_limit_depth(scenario.parents, depth) for depth in range(scenario.length)]
        rng = np.random.default_rng(seed)
        # One token is left out: the drafter never proposes it, whatever the target thinks of it.
        drafter = SamplingParams(temperature=1.0, top_k=scenario.vocabulary - 1)
        for context in self._contexts():
            logits = rng.normal(size=scenario.vocabulary).astype(np.float32)
            noise = rng.normal(scale=1.2, size=scenario.vocabulary).astype(np.float32)
            proposal = target_distribution(logits + noise, drafter)
            self._target[context] = target_distribution(logits, scenario.params)
            self._proposal[context] = proposal
            self._cumulative[context] = np.cumsum(proposal).tolist()
            self._likeliest[context] = np.argsort(-proposal, kind="stable").tolist()

    def joint(self) -> NDArray[np.float64]:
        """Probability of every sequence, ``[vocabulary ** length]``, the first token most significant."""
        probs = np.ones(1)
        for length in range(self.scenario.length):
            table = [self._target[context] for context in self._contexts() if len(context) == length]
            probs = (probs[:, None] * np.array(table)).ravel()
        return probs

    def draft(self, context: Context, uniforms: np.random.Generator) -> tuple[TokenTree, list[Distribution]]:
        """A draft after ``context`` and the target's distribution at each of its rows."""
        parents = self._shapes[self.scenario.length - len(context) - 1]
        tokens: list[int] = []
        contexts = [context]
        siblings: dict[int, list[int]] = {}
        for parent in parents:
            drawn = siblings.setdefault(parent, [])
            above = contexts[parent + 1]
            token = (
                self._draw(above, drawn, uniforms)
                if self.scenario.drawn
                else self._likeliest[above][len(drawn)]
            )
            drawn.append(token)
            tokens.append(token)
            contexts.append((*above, token))
        key = context, tuple(tokens)
        if key not in self._steps:
            inner = {parent: self._proposal[contexts[parent + 1]].astype(np.float32) for parent in siblings}
            tree = TokenTree(tuple(tokens), parents, inner if self.scenario.drawn else None)
            self._steps[key] = tree, [self._target[above] for above in contexts]
        return self._steps[key]

    def _draw(self, context: Context, drawn: list[int], uniforms: np.random.Generator) -> int:
        """One more child: repeats of its siblings are drawn again, which is sampling without replacement."""
        cumulative = self._cumulative[context]
        while True:
            token = bisect.bisect_right(cumulative, uniforms.random() * cumulative[-1])
            if token not in drawn:
                return token

    def _contexts(self) -> Iterator[Context]:
        for length in range(self.scenario.length):
            yield from itertools.product(range(self.scenario.vocabulary), repeat=length)


def _limit_depth(parents: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """The part of a tree's shape that is at most ``depth`` deep."""
    depths = TokenTree((0,) * len(parents), parents).depths
    kept = [node for node in range(len(parents)) if depths[node] <= depth]
    renumbered = {ROOT: ROOT} | {node: index for index, node in enumerate(kept)}
    return tuple(renumbered[parents[node]] for node in kept)
