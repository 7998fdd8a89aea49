"""What serving adds to a step, from what users of the service got without speculation.

A profile's steps run in process. Behind a server each of them is followed by a chunk of text for every request, which
passes through several processes, on processors that could compute the next step. What that takes is about the same
for a chunk of one token and of several. So one figure for each number of users is enough: milliseconds a chunk, with
which the model of `planner.plan.predict` gives the tokens a second that were measured.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_HALVINGS = 30


def chunk_ms(rate: Callable[[Floats], Floats], measured: Floats) -> Floats:
    """Milliseconds a chunk, in samples; 0 where the service was not slower than its steps.

    Args:
        rate: tokens a second of all users, falling, of milliseconds a chunk in each sample.
        measured: tokens a second, in samples.
    """
    # A step takes at least what its chunks take, so no more tokens come than one in that time.
    low, high = np.zeros(len(measured)), 1e3 / measured
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        slower = rate(middle) < measured
        low, high = np.where(slower, low, middle), np.where(slower, middle, high)
    # Kept at exactly nothing, so that a service that costs nothing is predicted as its engine.
    return np.where(rate(np.zeros(len(measured))) <= measured, 0.0, low)
