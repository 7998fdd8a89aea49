"""Arrival times of an open loop: a Poisson process, whose gaps are independent and exponentially distributed.

In an open loop requests come whether or not earlier ones have been answered, as they do from many independent
people. A closed loop instead waits for the server and therefore hides how long its queue would grow
(coordinated omission).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 256


def poisson_arrivals(rate: float, *seeds: int) -> Iterator[float]:
    """Endless arrival times in seconds after the start, in order.

    Args:
        rate: mean arrivals per second, above 0.
        seeds: whole numbers, 0 or above; the same ones give the same times.
    """
    if not rate > 0:
        raise ValueError(f"rate must be above 0 arrivals per second, not {rate}")
    random = np.random.default_rng(seeds)
    now = 0.0
    while True:
        for gap in random.exponential(1.0 / rate, _BLOCK):
            now += float(gap)
            yield now
