"""How a machine differs from one moment to the next, from the rounds of a profile.

More rounds tell better how fast a machine is on average, and nothing about the minutes in which it will be asked. So a
prediction is not as sure as the mean of its rounds but as one more round: its time has a factor whose logarithm
scatters as that of the rounds does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from planner.plan.profiles import Profile

Floats = NDArray[np.float64]


def moments(profile: Profile, samples: int, random: np.random.Generator) -> Floats:
    """``[1 + samples]``: factors of all times at a moment that was not measured; the first one is 1.

    Drawn from Student's distribution, since the variance comes from few rounds. With one round of everything nothing is
    known of that, and all are 1.
    """
    deviations = list(_deviations(profile))
    freedom = sum(len(each) - 1 for each in deviations)
    if freedom < 1:
        return np.ones(1 + samples)
    scale = math.sqrt(sum(float(each @ each) for each in deviations) / freedom)
    drawn = np.exp(scale * random.standard_t(freedom, samples))
    return np.concatenate([np.ones(1), drawn])


def _deviations(profile: Profile) -> Iterator[Floats]:
    """Logarithms of how rounds differ from their mean: those of a served load, else what a round's steps share."""
    for load in profile.serving:
        rates = np.log(load["tokens_per_second"])
        yield rates - rates.mean()
    if not profile.serving:
        steps = np.log([row["ms"] for row in profile.cost["verify"]])
        yield (steps - steps.mean(axis=1, keepdims=True)).mean(axis=0)
