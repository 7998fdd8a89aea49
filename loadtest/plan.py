"""The plan of a sweep: its cells, in the order in which they are measured, and what the users of each one send.

For each round and load point all arms are measured one right after the other, and the order of arms turns
round from one round to the next (none, speculative, speculative, none, ...). Slow drift of the machine, which
on shared hosts reaches a factor of two, then falls on both arms alike and cancels in the ratio of neighbours.
Arms of the same load point and round send the same prompts, with the same seeds and arrival times; each round
takes the next prompts of the file. Turning the order does not make up for a prefix cache, in which whoever comes
second finds the prompts of the first: see :mod:`loadtest.servers`.

A cell that simply sends N requests measures its edges: all users start at once, and at the end fewer and
fewer are still busy, so the last requests run on an emptier server than the first. Here the load is kept up
on both sides:

1. *Lead-in.* In a closed loop each user first sends one warm-up request, cut to a different length, so that
   the users do not march in step afterwards (with one user there is none). In an open loop the first fifth of
   the arrivals.
2. *Measured.* The cell's N requests, handed out in order as users become free or arrivals are due.
3. *Fillers.* Until the last measured request has ended, users who would have nothing to do keep sending; then
   the fillers still running are cancelled. Without them the last requests would run at less than the cell's
   concurrency.

Throughput is taken over the measured window (:mod:`loadtest.measures`), latency from measured requests
alone. Fillers send the cell's own prompts once more.

Where the cache is to be warm, a workload of *reading* goes before: each prompt that the cell is going to send, once,
for one token of output.

In an open loop requests come whether or not earlier ones have been answered, as they do from many independent
people. A closed loop instead waits for the server and therefore hides how long its queue would grow
(coordinated omission).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadtest.settings import Arm, SweepSettings

LoadKind = Literal["closed", "open"]
Role = Literal["reading", "warmup", "measured", "filler"]

_GAPS_AT_A_TIME = 256


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


@dataclass(frozen=True, slots=True)
class Work:
    """One request to send."""

    index: int
    """Counts the requests of a cell from 0, those that only read its prompts from -1 down; also tells their sampling
    seeds apart."""
    role: Role
    prompt: int
    """Position in the balanced order of prompts."""
    max_tokens: int
    due: float | None
    """Open loop: seconds after the cell's opening at which it is to be sent; closed loop: None, at once."""


class Workload:
    """Hands out the work of one cell, or what reads its prompts before it, and knows when that is over."""

    def __init__(self, cell: Cell, max_tokens: int, seed: int, *, reads: bool = False) -> None:
        self.cell = cell
        self.taken = 0
        self.measured_done = 0
        self.outstanding: set[int] = set()
        self.needed = _own_prompts(cell, max_tokens) if reads else cell.requests
        """Requests that have to end, whose number is known."""
        self._works = _reading(cell, self.needed) if reads else _works(cell, max_tokens, seed)
        self._counted: Role = "reading" if reads else "measured"
        self._roles: dict[int, Role] = {}

    @property
    def is_over(self) -> bool:
        """Whether every request that counts has ended; no more work is given out then."""
        return self.measured_done >= self.needed

    def take(self) -> Work | None:
        """The next request for whoever asks, or None once the cell is over.

        A cell without need for fillers (one user, or warm-up) has None to give as soon as all its work is
        taken.
        """
        work = None if self.is_over else next(self._works, None)
        if work is not None:
            self.taken += 1
            self.outstanding.add(work.index)
            self._roles[work.index] = work.role
        return work

    def done(self, index: int) -> None:
        """Note that a request has ended, well or not.

        Raises:
            KeyError: it is not outstanding.
        """
        self.outstanding.remove(index)
        role = self._roles.pop(index)
        self.measured_done += role == self._counted or self.cell.is_warmup


def _works(cell: Cell, max_tokens: int, seed: int) -> Iterator[Work]:
    if cell.is_warmup:
        for index in range(cell.requests):
            yield Work(index, "warmup", cell.first_prompt + index, max_tokens, None)
        return
    closed = cell.load.kind == "closed"
    arrivals: Iterator[float | None] = (
        itertools.repeat(None) if closed else poisson_arrivals(cell.load.level, seed, cell.round)
    )
    lead_in = _lead_in_lengths(cell, max_tokens)
    for index, length in enumerate(lead_in):
        prompt = cell.first_prompt + cell.requests + index
        yield Work(index, "warmup", prompt, length, next(arrivals))
    for index in range(cell.requests):
        prompt = cell.first_prompt + index
        yield Work(len(lead_in) + index, "measured", prompt, max_tokens, next(arrivals))
    if closed and cell.users == 1:
        return
    own = len(lead_in) + cell.requests
    for index in itertools.count(own):
        yield Work(index, "filler", cell.first_prompt + index % own, max_tokens, next(arrivals))


def _reading(cell: Cell, prompts: int) -> Iterator[Work]:
    for number in range(prompts):
        yield Work(-1 - number, "reading", cell.first_prompt + number, 1, None)


def _own_prompts(cell: Cell, max_tokens: int) -> int:
    """How many places in the order of prompts a cell takes up."""
    return cell.requests + len(_lead_in_lengths(cell, max_tokens))


def _lead_in_lengths(cell: Cell, max_tokens: int) -> list[int]:
    """Most tokens of each lead-in request: spread evenly in a closed loop, in full in an open loop."""
    if cell.load.kind == "open":
        return [max_tokens] * max(2, math.ceil(cell.requests / 5))
    if cell.users == 1:
        return []
    return [max(1, round(max_tokens * (user + 1) / cell.users)) for user in range(cell.users)]


def poisson_arrivals(rate: float, *seeds: int) -> Iterator[float]:
    """Endless arrival times in seconds after the start, in order, of a Poisson process.

    Its gaps are independent and exponentially distributed.

    Args:
        rate: mean arrivals per second, above 0.
        seeds: whole numbers, 0 or above; the same ones give the same times.
    """
    if not rate > 0:
        raise ValueError(f"rate must be above 0 arrivals per second, not {rate}")
    random = np.random.default_rng(seeds)
    now = 0.0
    while True:
        for gap in random.exponential(1.0 / rate, _GAPS_AT_A_TIME):
            now += float(gap)
            yield now
