"""How likely the nodes of a draft are accepted: what was profiled, corrected by what becomes of drafts.

Of a draft's i-th node it is the probability that it lies on the accepted path, so the tokens that the first k nodes
bring are the sum of the first k figures. It starts from counts by match length and node: the plan's, or guessed ones,
to which is added what is seen live. For each node there is a small logistic regression on top of that, on two
statistics: how the request's earlier drafts fared in relation to what was expected of them, and the drafter's own
log-probability of the path, where it has one. The regression by position is that of vLLM's pull request 52228, which
has the guards too: nothing before there are enough observations, no negative slope, labels of whole drafts. Labels are
whole here since what is emitted later says what would have become of the nodes that were not verified (`Fate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine import plan as planned
from speculators.match import LONGEST

Floats = NDArray[np.float64]
_EVERY = 25  # drafts between two fits
_LEAST = 50  # observations of a node
_MOST = 400  # drafts that are kept
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
    """The newest drafts, a row each; of nodes that were not followed the weight is 0."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self.match = np.zeros(_MOST, np.int64)
        self.history = np.zeros((_MOST, 1))
        self.confidence = np.zeros((_MOST, most))
        self.scored = np.zeros((_MOST, 1), bool)
        self.label = np.zeros((_MOST, most))
        self.weight = np.zeros((_MOST, most))

    def add(
        self, match: int, history: float, scores: Sequence[float] | None, accepted: Sequence[bool]
    ) -> None:
        """One draft, in the place of the oldest."""
        row, nodes = self.count % _MOST, len(accepted)
        self.count += 1
        self.match[row], self.history[row], self.scored[row] = match, history, scores is not None
        self.confidence[row] = 0.0
        if scores is not None:
            self.confidence[row, :nodes] = [_log_odds_of(score) for score in scores[:nodes]]
        self.label[row, :nodes] = accepted
        self.weight[row] = 0.0
        self.weight[row, :nodes] = 1.0


class SurvivalEstimate:
    """Of the drafts of one deployment.

    Args:
        counts: what was profiled, or guessed.
        most: nodes of its longest draft.
        guessed: whether what is seen is to replace them, by match length, too.
    """

    def __init__(self, counts: Sequence[planned.Survival], most: int, *, guessed: bool = False) -> None:
        self._most, self._guessed = most, guessed
        self._tried, self._accepted = _counted(counts, most)
        self._offsets: list[list[float]] = _offsets(self._tried, self._accepted).tolist()
        self._weights = [list(_PRIOR) for _ in range(most)]
        self._observed = _Observed(most)
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
        """Tokens that the counts lead to expect of the first `count` nodes."""
        return sum(map(_odds, self._offsets[min(match, LONGEST)][:count]))

    def learn(
        self, match: int, history: float, scores: Sequence[float] | None, accepted: Sequence[bool]
    ) -> None:
        """Take in which nodes of a draft were on the accepted path."""
        labels, row = accepted[: self._most], min(match, LONGEST)
        if self._guessed:
            self._tried[row, : len(labels)] += 1
            self._accepted[row, : len(labels)] += labels
        self._observed.add(row, history, scores, labels)
        if self._observed.count % _EVERY == 0:
            self._fit()

    def _fit(self) -> None:
        """Count anew, and one Newton step for each node of which enough was seen."""
        self.fits += 1
        table = _offsets(self._tried, self._accepted)
        self._offsets = table.tolist()
        seen = self._observed
        kept = min(seen.count, _MOST)
        weight, weights = seen.weight[:kept], np.asarray(self._weights)
        history = np.broadcast_to(seen.history[:kept], weight.shape)
        offset = table[seen.match[:kept]]
        confidence = np.where(seen.scored[:kept], seen.confidence[:kept] - offset, 0.0)
        features = np.stack([np.ones_like(weight), history, confidence], axis=-1)
        chances = 1 / (1 + np.exp(-(offset + (features * weights).sum(axis=-1))))
        slope = np.einsum("dn,dnf->nf", weight * (seen.label[:kept] - chances), features)
        curvature = np.einsum("dn,dnf,dng->nfg", weight * chances * (1 - chances), features, features)
        slope -= _RIDGE * (weights - _PRIOR)
        curvature += _RIDGE * np.eye(len(_PRIOR))
        moved = weights + np.clip(np.linalg.solve(curvature, slope[..., None])[..., 0], -_STEP, _STEP)
        moved[:, 1:] = np.maximum(moved[:, 1:], 0.0)
        enough = weight.sum(axis=0) >= _LEAST
        self._weights = np.where(enough[:, None], moved, weights).tolist()


def _log_odds_of(score: float) -> float:
    return log_odds(math.exp(min(0.0, score)))


def _counted(counts: Sequence[planned.Survival], most: int) -> tuple[Floats, Floats]:
    """Drafts that were tried and accepted, by match length and node."""
    tried, accepted = np.zeros((LONGEST + 1, most)), np.zeros((LONGEST + 1, most))
    for row in counts:
        nodes = min(most, len(row.tried), len(row.accepted))
        tried[min(row.match, LONGEST), :nodes] += row.tried[:nodes]
        accepted[min(row.match, LONGEST), :nodes] += row.accepted[:nodes]
    return tried, accepted


def _offsets(tried: Floats, accepted: Floats) -> Floats:
    """Log-odds by match length and node, never rising; few observations are drawn to those of all match lengths."""
    unknown = 0.5 ** np.arange(1, tried.shape[1] + 1)
    everywhere = (accepted.sum(axis=0) + unknown) / (tried.sum(axis=0) + 1)
    chances = (accepted + _SHRUNK * everywhere) / (tried + _SHRUNK)
    falling = np.minimum.accumulate(chances, axis=1)
    return np.asarray([[log_odds(value) for value in row] for row in falling.tolist()])
