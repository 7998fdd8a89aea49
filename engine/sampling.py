"""From the target's logits to a distribution, and from a distribution to a token.

Two promises are kept here. The distribution is the one that the sampling parameters define (temperature,
then top-k, then top-p, the order of Hugging Face Transformers' warpers and of TensorRT-LLM), in float64.
And the random numbers of a request depend on its seed alone: every request has its own generators, one
for each use, so neither the rest of the batch nor another use of randomness can shift them. Each drawn token
has its own stretch of the numbers, so a later call can go on where an earlier one stopped.

A token is drawn by an exponential race: with independent E_x ~ Exp(1) the x of greatest p(x) / E_x is
distributed as p (Efraimidis and Spirakis 2006; the Gumbel-max trick in another dress). Unlike a draw from
the cumulative sum, it takes the same random numbers for every p, and it changes its mind only where p
changes: if rounding in another batch shape moves p by a total variation of d, the token differs with
probability of at most 2d.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deployments.errors import DrafthouseError
from engine.request import SamplingParams

Distribution = NDArray[np.float64]
# Keeps an Exp(1) variate of exactly 0 (probability 2**-53) from making 0 / 0; too small to change others.
_TINY = 1e-300
# Numbers from one choice to the next: far more than a vocabulary takes.
_STRETCH = 2**40
# Logits in a block of the top-k search; shorter blocks give a tighter bound from more maxima.
_BLOCK = 32


class LogitsError(DrafthouseError, ArithmeticError):
    """The target's logits give no token: one is NaN or +infinity, or all of them are -infinity."""


class Draws(Protocol):
    """The two kinds of chance that verification needs."""

    def accept(self, probability: float) -> bool:
        """True with the given probability; always if it is 1 or more."""

    def choose(self, weights: Distribution) -> int:
        """Index x with probability ``weights[x] / sum(weights)``; weights ``[V]``, not all zero."""


class RequestRandom:
    """The random numbers of one request: three disjoint streams that depend on its seed and on nothing else.

    Each ``accept`` takes one number from the first stream, each ``choose`` takes V from a stretch of its own of
    the second. Speculators that sample use ``draft``, the third.

    Args:
        seed: 64-bit seed.
        chosen: ``choose`` calls that were made for this request before, by someone with the same seed.
    """

    def __init__(self, seed: int, chosen: int = 0) -> None:
        accept, choose, draft = (np.random.PCG64DXSM(s) for s in np.random.SeedSequence(seed).spawn(3))
        self._accept = np.random.Generator(accept)
        self._choose = np.random.Generator(choose)
        self._choices, self._first_state = choose, choose.state
        self._chosen = chosen
        self.draft = np.random.Generator(draft)

    def accept(self, probability: float) -> bool:
        """True with the given probability; always if it is 1 or more."""
        return self._accept.random() < probability

    def choose(self, weights: Distribution) -> int:
        """Index x with probability ``weights[x] / sum(weights)``; weights ``[V]``, not all zero."""
        self._choices.state = self._first_state
        self._choices.advance(self._chosen * _STRETCH)
        self._chosen += 1
        times = self._choose.standard_exponential(len(weights))
        times += _TINY
        return int((weights / times).argmax())


class TargetDistributions:
    """The target's distribution at each row of a step, computed when a row is asked for.

    Verification walks one path and leaves the other rows alone, so on a tree most rows never need a softmax.

    Args:
        logits: the target's logits, float ``[n, V]``.
        params: sampling parameters of the request; not greedy.
        request_id: named in errors.
    """

    def __init__(self, logits: NDArray[np.float32], params: SamplingParams, request_id: int) -> None:
        self._logits, self._params, self._request_id = logits, params, request_id

    def __getitem__(self, row: int) -> Distribution:
        """Distribution ``[V]`` at a row.

        Raises:
            LogitsError: the row's logits are not usable; the message names the request and the row.
        """
        try:
            return target_distribution(self._logits[row], self._params)
        except LogitsError as error:
            raise LogitsError(f"request {self._request_id}, row {row} of the step: {error}") from None


def target_distribution(logits: NDArray[np.float32], params: SamplingParams) -> Distribution:
    """The distribution that tokens are to be drawn from: temperature, then top-k, then top-p.

    Top-k keeps the k likeliest tokens; top-p keeps the likeliest ones up to and including that at which their
    sum reaches ``top_p``. Both keep all tokens that tie with the last one kept.

    Args:
        logits: float, ``[V]`` or ``[n, V]``; -infinity bans a token.
        params: sampling parameters with a temperature above 0.

    Returns:
        Probabilities, float64, of the shape of ``logits``; each row sums to 1.

    Raises:
        LogitsError: a row holds NaN or +infinity, or bans every token.
        ValueError: the temperature is 0, which has no distribution but an argmax.
    """
    if params.temperature == 0:
        raise ValueError("temperature 0 is greedy and has no distribution; take the argmax of the logits")
    if logits.ndim == 2:
        return np.stack([target_distribution(row, params) for row in logits])
    top = float(logits.max())
    if not np.isfinite(top):
        raise LogitsError(describe_bad_logits(logits))
    if not 0 < params.top_k < len(logits):
        return _softmax_nucleus(np.subtract(logits, top, dtype=np.float64), params)
    kept = _top_k(logits, params.top_k)
    probs: Distribution = np.zeros(len(logits))
    probs[kept] = _softmax_nucleus(np.subtract(logits[kept], top, dtype=np.float64), params)
    return probs


def describe_bad_logits(logits: NDArray[np.float32]) -> str:
    """What is wrong with logits that have no finite maximum."""
    if np.isnan(logits).any():
        return f"{int(np.isnan(logits).sum())} of {logits.size} logits of the target are NaN"
    if np.isposinf(logits).any():
        return f"{int(np.isposinf(logits).sum())} of {logits.size} logits of the target are +infinity"
    return "every token is banned (all logits are -infinity); at least one must be allowed"


def _softmax_nucleus(logits: Distribution, params: SamplingParams) -> Distribution:
    """Temperature, softmax and top-p of logits ``[n]`` of which the greatest is 0."""
    with np.errstate(over="ignore"):  # a tiny temperature sends all but the top to -infinity, as it should
        probs: Distribution = np.exp(logits / params.temperature)
    probs /= probs.sum()
    if params.top_p < 1:
        probs[probs < _nucleus_threshold(probs, params.top_p)] = 0
        probs /= probs.sum()
    return probs


def _nucleus_threshold(probs: Distribution, top_p: float) -> float:
    """Probability of the last token that top-p keeps.

    Of n tokens, those below (1 - top_p) / n together weigh less than 1 - top_p, so the others reach top_p
    without them: only those have to be sorted, a few hundred instead of a whole vocabulary.
    """
    candidates = np.sort(probs[probs >= (1 - top_p) / len(probs)])[::-1]
    last = int(np.searchsorted(np.cumsum(candidates), top_p))
    return float(candidates[min(last, len(candidates) - 1)])


def likeliest_tokens(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The tokens of the greatest logits ``[V]``, the greatest first, of equal ones the lowest id; at most V.

    NaN, which only rows that nothing is emitted from may hold, counts as -infinity.
    """
    if np.isnan(logits.max()):
        logits = np.where(np.isnan(logits), np.float32(-np.inf), logits)
    kept = _top_k(logits, min(count, len(logits)))
    order = np.lexsort((kept, -logits[kept]))[:count]
    return np.asarray(kept[order], np.int64)


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Indices of the k greatest logits and those that tie with the last of them.

    The k-th greatest maximum of blocks of the logits is a lower bound of the k-th greatest logit. It leaves
    few to choose from, which saves a partition of the whole vocabulary.
    """
    blocks = len(logits) // _BLOCK
    candidates: NDArray[np.intp]
    if k <= blocks:
        maxima = logits[: blocks * _BLOCK].reshape(_BLOCK, blocks).max(axis=0)
        candidates = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
    else:
        candidates = np.arange(len(logits))
    values = logits[candidates]
    kept: NDArray[np.intp] = candidates[values >= np.partition(values, -k)[-k]]
    return kept
