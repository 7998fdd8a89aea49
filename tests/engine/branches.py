"""Chance that takes every branch: the exact distribution of whatever a function of random draws returns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

from engine.sampling import Distribution

Outcome = TypeVar("Outcome")


class Branches:
    """Stands in for a request's random numbers and walks one branch of the tree of all decisions per run."""

    def __init__(self) -> None:
        self._path: list[
            tuple[list[tuple[int, float]], int]
        ] = []  # options of each decision, and the one taken
        self._at = 0
        self.probability = 1.0

    def accept(self, probability: float) -> bool:
        certain = min(float(probability), 1.0)
        return bool(self._decide([(1, certain), (0, 1 - certain)]))

    def choose(self, weights: Distribution) -> int:
        mass = float(weights.sum())
        return self._decide([(index, float(weight) / mass) for index, weight in enumerate(weights)])

    def next_branch(self) -> bool:
        """Turn to the next branch; False when there is none left."""
        while self._path:
            options, taken = self._path.pop()
            if taken + 1 < len(options):
                self._path.append((options, taken + 1))
                break
        self._at, self.probability = 0, 1.0
        return bool(self._path)

    def _decide(self, options: list[tuple[int, float]]) -> int:
        if self._at == len(self._path):
            self._path.append(([option for option in options if option[1] > 0], 0))
        possible, taken = self._path[self._at]
        self._at += 1
        value, probability = possible[taken]
        self.probability *= probability
        return value


def exact_distribution(run: Callable[[Branches], Outcome]) -> dict[Outcome, float]:
    """Probability of each outcome of ``run``, by running it once for every branch."""
    outcomes: dict[Outcome, float] = defaultdict(float)
    branches = Branches()
    while True:
        outcome = run(branches)
        outcomes[outcome] += branches.probability
        if not branches.next_branch():
            return dict(outcomes)
