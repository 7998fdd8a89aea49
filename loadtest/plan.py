"""The cells of a sweep, in the order in which they are measured.

For each round and load point all arms are measured one right after the other, and the order of arms turns
round from one round to the next (none, speculative, speculative, none, ...). Slow drift of the machine, which
on shared hosts reaches a factor of two, then falls on both arms alike and cancels in the ratio of neighbours.
Arms of the same load point and round send the same prompts, with the same seeds and arrival times; each round
takes the next prompts of the file. Turning the order does not make up for a prefix cache, in which whoever comes
second finds the prompts of the first: see :mod:`loadtest.cache`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loadtest.settings import Arm, SweepSettings

LoadKind = Literal["closed", "open"]


@dataclass(frozen=True, slots=True, order=True)
class LoadPoint:
    """How much load: users that each keep one request running, or arrivals per second."""

    kind: LoadKind
    level: float
    """Users (closed) or requests per second (open)."""

    @property
    def label(self) -> str:
        """For tables, plots and file names: ``c8`` or ``2.5rps``."""
        return f"c{self.level:g}" if self.kind == "closed" else f"{self.level:g}rps"


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one load point in one round."""

    number: int
    """Position in the sweep, from 0."""
    round: int
    """From 0; -1 is the warm-up before the first round."""
    arm: Arm
    load: LoadPoint
    users: int
    """Locust users: the concurrency (closed) or the most requests in flight (open)."""
    requests: int
    """Measured requests."""
    first_prompt: int
    """Where in the balanced order of prompts this cell begins (see :func:`loadtest.prompts.select`)."""

    @property
    def name(self) -> str:
        """Name of the cell's folder; sorts in the order of the sweep."""
        return f"{self.number:03d}-{self.load.label}-{self.arm.name}"

    @property
    def is_warmup(self) -> bool:
        """Whether its requests only warm the server up."""
        return self.round < 0


def load_points(settings: SweepSettings) -> tuple[LoadPoint, ...]:
    """Closed-loop points first, each kind in the order given."""
    closed = [LoadPoint("closed", users) for users in settings.concurrency]
    return (*closed, *(LoadPoint("open", rate) for rate in settings.request_rates))


def plan_cells(settings: SweepSettings) -> tuple[Cell, ...]:
    """All cells of a sweep, warm-up first."""
    cells: list[Cell] = []
    warmup = LoadPoint("closed", min(settings.warmup_requests, max(settings.concurrency, default=1)))
    for arm in settings.arms:
        cells.append(Cell(len(cells), -1, arm, warmup, int(warmup.level), settings.warmup_requests, 0))
    for round_number in range(settings.rounds):
        arms = settings.arms if round_number % 2 == 0 else settings.arms[::-1]
        for load in load_points(settings):
            count = _requests(settings, load)
            cells.extend(
                Cell(number, round_number, arm, load, _users(settings, load), count, round_number * count)
                for number, arm in enumerate(arms, start=len(cells))
            )
    return tuple(cells)


def _requests(settings: SweepSettings, load: LoadPoint) -> int:
    wanted = load.level * (settings.requests_per_user if load.kind == "closed" else settings.arrival_seconds)
    return max(settings.requests, math.ceil(wanted))


def _users(settings: SweepSettings, load: LoadPoint) -> int:
    return int(load.level) if load.kind == "closed" else settings.max_in_flight
