"""Probability integral transform: are the tokens that a real model emitted samples of its own distributions?

At every position the target's distribution p is known (scored again without speculation) and one token x
was emitted. Put the vocabulary in some order; with F(x-) the probability of all tokens before x and U
uniform, F(x-) + U p(x) is uniform on (0, 1) and independent from position to position if, and only if as
far as the order can tell, x was drawn from p (Rosenblatt 1952). A Kolmogorov-Smirnov test then needs one
pass and no assumption about the model.

Two orders are used: by falling probability, which shows output that is too sharp or too flat, and by
token id, which shows what has nothing to do with rank. A negative control runs along: tokens drawn at
another temperature in the same contexts, which the same test must reject; if it does not, there were too
few positions to tell.

Give it distributions at a temperature alone. Top-k and top-p cut where rounding between step shapes may
move a token across, which would show as an emitted token of probability zero; the joint test covers both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.lossless.statistics import kolmogorov_smirnov
from engine.sampling import Distribution

LEAST_POSITIONS = 100


@dataclass(frozen=True, slots=True)
class Uniformity:
    """Result of the transform test.

    Attributes:
        positions: emitted tokens tested.
        impossible: emitted tokens of probability 0; a single one rejects.
        rank_distance: Kolmogorov-Smirnov distance with tokens ordered by falling probability.
        rank_p_value: its p-value.
        id_distance: the distance with tokens ordered by id.
        id_p_value: its p-value.
        rejected: whether the tokens are refuted as samples of the target at level alpha (half of it for
            each order).
    """

    positions: int
    impossible: int
    rank_distance: float
    rank_p_value: float
    id_distance: float
    id_p_value: float
    rejected: bool


class UniformityTest:
    """Collects one number per emitted token and order, never a distribution.

    Args:
        seed: of the uniform numbers that spread each token over its probability.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._by_rank: list[float] = []
        self._by_id: list[float] = []
        self.impossible = 0

    @property
    def usable(self) -> int:
        """Positions of positive probability so far."""
        return len(self._by_rank)

    def observe(self, probs: Distribution, token: int) -> None:
        """Add one position: the target's distribution ``[V]`` there and the token that was emitted.

        Tokens that tie share one interval in the order by probability.
        """
        probability = probs[token]
        if probability == 0:
            self.impossible += 1
            return
        likelier = float(probs[probs > probability].sum())
        tied = float(probs[probs == probability].sum())
        self._by_rank.append(likelier + self._random.random() * tied)
        self._by_id.append(float(probs[:token].sum()) + self._random.random() * float(probability))

    def result(self, alpha: float) -> Uniformity:
        """Test what was collected.

        Raises:
            ValueError: fewer than 100 positions.
        """
        positions = len(self._by_rank) + self.impossible
        if len(self._by_rank) < LEAST_POSITIONS:
            raise ValueError(
                f"transform test: {len(self._by_rank)} usable tokens; emit {LEAST_POSITIONS} or more"
            )
        rank_distance, rank_p = kolmogorov_smirnov(np.array(self._by_rank))
        id_distance, id_p = kolmogorov_smirnov(np.array(self._by_id))
        rejected = self.impossible > 0 or min(rank_p, id_p) < alpha / 2
        return Uniformity(positions, self.impossible, rank_distance, rank_p, id_distance, id_p, rejected)


@dataclass(frozen=True, slots=True)
class TransformReport:
    """The emitted tokens and the negative control, side by side.

    Attributes:
        emitted: result for the tokens that were emitted.
        control: result for tokens drawn at another temperature in the same contexts.
        alpha: level of both tests.
    """

    emitted: Uniformity
    control: Uniformity
    alpha: float

    @property
    def passed(self) -> bool:
        """The emitted tokens are not rejected and the control is."""
        return not self.emitted.rejected and self.control.rejected


class TransformTest:
    """The transform test of emitted tokens with its negative control.

    Args:
        control_temperature: the control's tokens are drawn from ``p ** (1 / control_temperature)``; away
            from 1.
        seed: of all random numbers of the test; they have nothing to do with those of the engine.

    Raises:
        ValueError: the control temperature is not positive, or is 1, which is no control.
    """

    def __init__(self, control_temperature: float, seed: int) -> None:
        if control_temperature <= 0 or control_temperature == 1:
            raise ValueError(f"control temperature is {control_temperature}; it must be positive and not 1")
        emitted, control, draws = np.random.SeedSequence(seed).generate_state(3).tolist()
        self._exponent = 1 / control_temperature
        self._emitted = UniformityTest(emitted)
        self._control = UniformityTest(control)
        self._random = np.random.default_rng(draws)

    @property
    def usable(self) -> int:
        """Positions with an emitted token that was possible."""
        return self._emitted.usable

    @property
    def impossible(self) -> int:
        """Emitted tokens of probability 0, each of which refutes the engine."""
        return self._emitted.impossible

    def observe(self, probs: Distribution, token: int) -> None:
        """Add one position: the target's distribution ``[V]`` there and the token that was emitted."""
        self._emitted.observe(probs, token)
        reached = np.cumsum(probs**self._exponent)
        # At most the last possible token: a uniform number may round up to the whole sum.
        drawn = np.searchsorted(reached, self._random.random() * reached[-1], side="right")
        self._control.observe(probs, int(min(drawn, np.flatnonzero(probs)[-1])))

    def report(self, alpha: float) -> TransformReport:
        """Test both.

        Raises:
            ValueError: fewer than 100 positions.
        """
        return TransformReport(self._emitted.result(alpha), self._control.result(alpha), alpha)
