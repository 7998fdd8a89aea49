"""The memory of a server's processes over time, and whether it grows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtrit

from deploy.processes import Process

LEVEL = 0.95
_WARM_SHARE = 0.2
"""Of a run's time, before which caches, pools and heaps have not found their size."""
_BLOCKS = 20
"""Stretches of the time whose means are compared: neighbouring samples say nearly the same."""
_LEAST_BLOCKS = 5
_PSS = re.compile(r"^Pss: +(\d+) kB$", re.MULTILINE)
_TOLERATED = 0.001
"""Of the memory, an hour."""
_LEAST_HOURS = 1 / 6
"""Shorter runs say nothing about growth: much of their time is that of the beginning."""


@dataclass(frozen=True)
class Sample:
    """Memory in use (MiB) by process, `hours` after the beginning of a service."""

    hours: float
    mib: dict[str, float]


@dataclass(frozen=True)
class Slope:
    """MiB an hour, with the bounds between which it lies at `LEVEL`; the memory at the end, and the hours looked at."""

    value: float
    low: float
    high: float
    mib: float
    hours: float

    @property
    def grows(self) -> bool:
        """Whether the growth is certain, and more than can be tolerated."""
        return self.hours > _LEAST_HOURS and self.low > _TOLERATED * self.mib


def measure(processes: Iterable[Process]) -> dict[str, float]:
    """Memory of each process, by program or model; its share only of pages that several have (PSS)."""
    found: dict[str, float] = {}
    for process in processes:
        models = [Path(part).parents[1].name for part in process.arguments if part.endswith("/1/model.py")]
        try:
            content = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
        except OSError:  # it has just ended
            continue
        name = models[0] if models else process.name
        found[name] = found.get(name, 0.0) + sum(map(int, _PSS.findall(content))) / 1024
    return found


def slopes(runs: Sequence[Sequence[Sample]]) -> dict[str, Slope]:
    """By process, and of `all`; empty if there are too few samples.

    Args:
        runs: samples of one service after the other; the slope is common to them, the level is not.
    """
    warm = [_warm(run) for run in runs]
    names = sorted({name for run in warm for sample in run for name in sample.mib})
    series = {name: [[(one.hours, one.mib.get(name, 0.0)) for one in run] for run in warm] for name in names}
    series["all"] = [[(one.hours, sum(one.mib.values())) for one in run] for run in warm]
    fitted = {name: _fit(points) for name, points in series.items()}
    return {name: slope for name, slope in fitted.items() if slope}


def _warm(run: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in run if sample.hours >= _WARM_SHARE * run[-1].hours]


def _fit(runs: Sequence[Sequence[tuple[float, float]]]) -> Slope | None:
    """Least squares over means of blocks, each run about its own mean; Student's interval."""
    times: list[float] = []
    values: list[float] = []
    levels = 0
    for run in runs:
        blocks = [np.array(block) for block in np.array_split(np.array(run), _BLOCKS) if len(block)]
        if len(blocks) < _LEAST_BLOCKS:
            continue
        means = np.array([block.mean(axis=0) for block in blocks])
        means -= means.mean(axis=0)
        times.extend(means[:, 0])
        values.extend(means[:, 1])
        levels += 1
    if not levels:
        return None
    x, y = np.array(times), np.array(values)
    spread = float(x @ x)
    slope = float(x @ y) / spread
    freedom = len(x) - levels - 1
    rest = y - slope * x
    error = math.sqrt(float(rest @ rest) / freedom / spread)
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    hours = sum(run[-1][0] - run[0][0] for run in runs if run)
    return Slope(slope, slope - reach, slope + reach, runs[-1][-1][1], hours)
