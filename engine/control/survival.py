"""How likely the nodes of a draft are accepted: what was profiled, corrected by what becomes of drafts.

Of a draft's i-th node it is the probability that it lies on the accepted path, so the tokens that the first k nodes
bring are the sum of the first k figures. It starts from the plan's counts by match length and node. What is seen live
moves it: for each node a small logistic regression, on top of that, on two statistics: how the request's earlier
drafts fared in relation to what was expected of them, and the drafter's own log-probability of the path, where it has
one. The regression by position is that of vLLM's pull request 52228, which has the guards too: nothing before there
are enough observations, no negative slope, labels of whole drafts. Labels are whole here since what is emitted later
says what would have become of the nodes that were not verified (`Fate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine import plan as planned
from speculators.match import LONGEST

_EVERY = 50  # drafts between two fits
_LEAST = 50  # observations of a node
_MOST = 400  # observations that are kept of each
_PRIOR = (0.0, 0.4, 0.0)  # intercept, slope of the request's history, slope of the drafter's confidence
_RIDGE = 4.0
_STEP = 1.0  # most that a fit moves a weight
_SHRUNK = 20.0  # drafts that the mean over all match lengths counts for
_FORGETTING = 0.7  # of a request's earlier drafts, with each further one
_FEW = 2.0  # tokens beside which those of a request count
_LIMIT = 6.0  # of log-odds


def log_odds(probability: float) -> float:
    """Cut off where next to nothing can be told apart."""
    if probability <= 0:
        return -_LIMIT
    if probability >= 1:
        return _LIMIT
    return max(-_LIMIT, min(_LIMIT, math.log(probability / (1 - probability))))


def _odds(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@dataclass(slots=True)
class History:
    """How the drafts of one request fared: accepted tokens, and those that the plan led to expect."""

    accepted: float = 0.0
    expected: float = 0.0

    @property
    def value(self) -> float:
        """Logarithm of their ratio, drawn to 0 while there are few."""
        return math.log((self.accepted + _FEW) / (self.expected + _FEW))

    def add(self, accepted: int, expected: float) -> None:
        """One more draft."""
        self.accepted = _FORGETTING * self.accepted + accepted
        self.expected = _FORGETTING * self.expected + expected


@dataclass(slots=True)
class Fate:
    """A chain on its way: how much of it has come out, whether or not it was verified.

    Attributes:
        tokens: the chain.
        match, history, scores: what was known when it was proposed.
        at: how many of its tokens have been emitted.
    """

    tokens: Sequence[int]
    match: int
    history: float
    scores: Sequence[float] | None
    at: int = 0

    def follow(self, emitted: Sequence[int]) -> bool:
        """Take in what was emitted next; whether its fate is known now."""
        for token in emitted:
            if self.at == len(self.tokens) or token != self.tokens[self.at]:
                return True
            self.at += 1
        return self.at == len(self.tokens)


class _Observed:
    """The newest observations of each node."""

    def __init__(self, most: int) -> None:
        self.count = [0] * most
        self.offset = np.zeros((most, _MOST))
        self.features = np.zeros((most, _MOST, len(_PRIOR)))
        self.label = np.zeros((most, _MOST))


class SurvivalEstimate:
    """Of the drafts of one deployment.

    Args:
        counts: what was profiled.
        most: nodes of its longest draft.
    """

    def __init__(self, counts: Sequence[planned.Survival], most: int) -> None:
        self._offsets = _offsets(counts, most)
        self._weights = [list(_PRIOR) for _ in range(most)]
        self._observed = _Observed(most)
        self._drafts = 0
        self.fits = 0

    def __call__(self, match: int, history: float, scores: Sequence[float] | None, count: int) -> list[float]:
        """Of the first `count` nodes, never rising."""
        offsets = self._offsets[min(match, LONGEST)]
        found, least = [], 1.0
        for node in range(min(count, len(offsets))):
            bias, by_history, by_score = self._weights[node]
            value = offsets[node] + bias + by_history * history
            if scores is not None and by_score:
                value += by_score * (_log_odds_of(scores[node]) - offsets[node])
            least = min(least, _odds(value))
            found.append(least)
        return found

    def expected(self, match: int, count: int) -> float:
        """Tokens that the plan leads to expect of so many nodes."""
        return sum(map(_odds, self._offsets[min(match, LONGEST)][:count]))

    def learn(
        self, match: int, history: float, scores: Sequence[float] | None, accepted: Sequence[bool]
    ) -> None:
        """Take in which nodes of a draft were on the accepted path."""
        offsets, seen = self._offsets[min(match, LONGEST)], self._observed
        for node, label in enumerate(accepted[: len(offsets)]):
            place = seen.count[node] % _MOST
            seen.count[node] += 1
            seen.offset[node, place] = offsets[node]
            confidence = 0.0 if scores is None else _log_odds_of(scores[node]) - offsets[node]
            seen.features[node, place] = (1.0, history, confidence)
            seen.label[node, place] = label
        self._drafts += 1
        if self._drafts % _EVERY == 0:
            self._fit()

    def _fit(self) -> None:
        """One Newton step for each node."""
        self.fits += 1
        for node, seen in enumerate(self._observed.count):
            if seen < _LEAST:
                continue
            kept = min(seen, _MOST)
            features = self._observed.features[node, :kept]
            weights = np.asarray(self._weights[node])
            chances = 1 / (1 + np.exp(-(self._observed.offset[node, :kept] + features @ weights)))
            slope = features.T @ (self._observed.label[node, :kept] - chances)
            slope -= _RIDGE * (weights - _PRIOR)
            curvature = (features * (chances * (1 - chances))[:, None]).T @ features
            curvature[np.diag_indices(len(_PRIOR))] += _RIDGE
            weights = weights + np.clip(np.linalg.solve(curvature, slope), -_STEP, _STEP)
            weights[1:] = np.maximum(weights[1:], 0.0)
            self._weights[node] = weights.tolist()


def _log_odds_of(score: float) -> float:
    return log_odds(math.exp(min(0.0, score)))


def _offsets(counts: Sequence[planned.Survival], most: int) -> list[list[float]]:
    """Log-odds by match length and node, never rising; few observations are drawn to those of all match lengths."""
    tried, accepted = np.zeros((LONGEST + 1, most)), np.zeros((LONGEST + 1, most))
    for row in counts:
        nodes = min(most, len(row.tried), len(row.accepted))
        tried[min(row.match, LONGEST), :nodes] += row.tried[:nodes]
        accepted[min(row.match, LONGEST), :nodes] += row.accepted[:nodes]
    unknown = 0.5 ** np.arange(1, most + 1)
    everywhere = (accepted.sum(axis=0) + unknown) / (tried.sum(axis=0) + 1)
    chances = (accepted + _SHRUNK * everywhere) / (tried + _SHRUNK)
    falling = np.minimum.accumulate(chances, axis=1)
    return [[log_odds(value) for value in row] for row in falling.tolist()]
