"""What a controller keeps in mind: of its ways of drafting, of requests, of batches, and of a step in the making."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from engine.control.costs import LiveCosts
from engine.control.survival import Fate, History, SurvivalEstimate
from engine.running import RunningRequest
from speculators.base import Speculator
from speculators.tree import TokenTree

Floats = NDArray[np.float64]
TIE = 0.002  # of a step's tokens: no reason to draft more
_FIRST_TRIALS = 50  # drafts after which what was seen decides
_MEMORY = 0.98  # of the average worth of a step, with each further one
_FIRST_STEPS = 64  # of a batch, before which it does not sleep
_ASKING_MEMORY = 48  # steps: of what asking for drafts brings and takes
_AWAKE_EVERY = 8, 24  # steps, while nothing pays: the least and the most of them,
_AWAKE = 0.005  # and between them as many as make asking that much of the time
_ALIKE = 0.7  # batches, in relation to each other
_SCOUTS = 4  # requests, one of which is asked for meanwhile
_MIXING = 0x9E3779B1  # 2^32 over the golden ratio: Knuth's multiplicative hashing
_LEAP = 2.0  # most that a single step counts for of what asking takes: one that takes in whole prompts tells little


@dataclass(slots=True)
class Way:
    """A deployment's drafting.

    Attributes:
        name: of the deployment.
        speculators: the one to be asked first in front.
        most: nodes of its longest draft.
        survival: of its drafts.
        costs: of drafting, by requests and nodes; None where it costs next to nothing.
        in_turns: whether its speculators draft in turns.
        guessed: whether it began without anything known of what is accepted.
        trials, waited: drafts that were made whole to learn that, and steps since the last of them.
        unused: steps since it last drafted.
        idle: steps since drafting was last worth its time.
        followed: requests that its drafter reads along with, where it costs something.
        scouted: steps since a request was last followed for trials alone.
        lately: how its latest drafts fared, whosever they were.
    """

    name: str
    speculators: Sequence[Speculator]
    most: int
    survival: SurvivalEstimate
    costs: LiveCosts | None
    in_turns: bool = False
    guessed: bool = False
    trials: int = 0
    waited: int = 0
    unused: int = 0
    idle: int = 0
    followed: set[int] = field(default_factory=set)
    scouted: int = 0
    lately: History = field(default_factory=History)

    def may_draft(self, item: RunningRequest) -> bool:
        """Whether its drafter knows a request: it was told of it, and lacked nothing of what that took over."""
        return self.speculators[-1].name in item.speculators

    def passed(self, steps: int) -> None:
        """So many steps have come, without it so far."""
        self.unused, self.idle, self.scouted = self.unused + steps, self.idle + steps, self.scouted + steps

    @property
    def unseen(self) -> bool:
        """Whether what is accepted of its drafts is still mostly guessed."""
        return self.guessed and self.trials < _FIRST_TRIALS


@dataclass(slots=True)
class RequestState:
    """What is known of a running request, by way of drafting: how it fared.

    `most` is the longest draft that it asked for, `read` how many of its tokens have been read by drafters that cost
    something.
    """

    most: int | None
    histories: dict[str, History]
    fates: dict[str, Fate] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proposed:
    """A draft as it was made, and what was known then."""

    tree: TokenTree
    way: Way
    match: int
    history: float


@dataclass(slots=True)
class Worth:
    """Of a step at a batch: tokens and milliseconds in relation to those of plain decoding, averages of late.

    Attributes:
        pays: tokens that drafts bring beyond their time, of those of plain decoding, likewise.
        plain_ms: of a step of plain decoding.
        asking_ms, resting_ms: of all that has to do with drafts in a step, without that of costly drafters, where
            everybody is asked and where nobody is; averages.
        steps: for which drafts were asked.
        slept: steps since then.
        asked: what the last of them was asked for: one of so many requests.
    """

    tokens: float = 1.0
    milliseconds: float = 1.0
    pays: float = 0.0
    plain_ms: float = 0.0
    asking_ms: float = 0.0
    resting_ms: float = 0.0
    steps: int = 0
    slept: int = 0
    asked: int = 1

    @property
    def _share(self) -> float:
        """Of averages, what the step counts for that has just come."""
        return min(1.0, max(1 / self.steps, (1 + self.slept) / _ASKING_MEMORY))

    @property
    def sleepy(self) -> bool:
        """Whether drafts have brought less than asking for them takes."""
        least = max(TIE * self.plain_ms, self.asking_ms - self.resting_ms)
        return self.steps >= _FIRST_STEPS and self.pays * self.plain_ms < least

    def sleeps_on(self) -> bool:
        """Whether nobody is asked in the step that comes, which is then counted: see `_AWAKE_EVERY`."""
        if not self.sleepy:
            return False
        shortest, longest = _AWAKE_EVERY
        takes = (self.asking_ms - self.resting_ms) / self.asked
        between = min(max(takes / (_AWAKE * self.plain_ms), shortest), longest)
        if self.slept + 1 >= between:
            return False
        self.slept += 1
        return True

    def add(self, tokens: float, milliseconds: float, pays: float) -> None:
        """Take in a step: the first few count as much as all before them, and one for those that were slept before."""
        self.steps += 1
        share = max(1 - _MEMORY, 1 / (1 + self.steps))
        self.tokens += share * (tokens - self.tokens)
        self.milliseconds += share * (milliseconds - self.milliseconds)
        self.pays += self._share * (pays - self.pays)

    def took(self, milliseconds: float, asked: int) -> None:
        """Likewise what all that has to do with drafts took, where one of so many requests was asked for; 0: none."""
        if asked:
            whole = self.resting_ms + asked * (milliseconds - self.resting_ms)
            if self.steps > 1:
                whole = min(whole, self.resting_ms + _LEAP * max(0.0, self.asking_ms - self.resting_ms))
            self.asked = asked
            self.asking_ms += self._share * (whole - self.asking_ms)
            self.slept = 0
        else:
            share = 1 / _ASKING_MEMORY if self.resting_ms else 1.0
            self.resting_ms += share * (milliseconds - self.resting_ms)


def worth_at(known: dict[int, Worth], decoding: int) -> Worth:
    """That of a batch, which begins with what is known of one that is about as large."""
    if decoding not in known:
        near = min(known, key=lambda other: abs(other - decoding), default=0)
        alike = decoding * _ALIKE <= near <= decoding / _ALIKE
        known[decoding] = replace(known[near], slept=0) if alike else Worth()
    return known[decoding]


@dataclass(slots=True)
class Step:
    """A step in the making: requests that decode, and what drafts of each size cost.

    Attributes:
        expected: tokens of the nodes that are verified.
        brought: likewise of those that are best, less what the time of verifying them is worth.
        asked: how many of the requests are asked for: one of so many.
    """

    decoding: int
    context: float
    worth: Worth
    verify: Floats = field(default_factory=lambda: np.zeros(1))
    drafting_ms: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)
    expected: float = 0.0
    brought: float = 0.0
    asked: int = 1

    @property
    def rate(self) -> float:
        """Tokens that a millisecond is worth."""
        return self.worth.tokens / self.worth.milliseconds * self.decoding / float(self.verify[0])

    def best(self, pool: Floats, verify: Floats) -> tuple[int, float]:
        """How many of these nodes, the likeliest first, are worth their verification, and by how many tokens.

        Args:
            pool: survival of each.
            verify: milliseconds of steps with none of them, one, ...
        """
        pool = pool[: len(verify) - 1]
        if not len(pool):
            return 0, 0.0
        net = pool.cumsum() - self.rate * (verify[1 : len(pool) + 1] - verify[0])
        able = float(net.max()) - TIE * self.decoding
        if able <= 0:
            return 0, 0.0
        count = int((net >= able).argmax()) + 1
        return count, float(net[count - 1])

    def value(self, rows: Iterable[Sequence[float]], milliseconds: float) -> float:
        """Tokens beyond one a request that the best of these drafts bring, less what their time is worth."""
        pool = np.asarray([value for row in rows for value in row])
        return self.best(-np.sort(-pool), self.verify)[1] - self.rate * milliseconds


def scouts(able: Sequence[RunningRequest]) -> list[RunningRequest]:
    """Some of these requests, the same ones in every step: nothing has to be kept of the texts of the others."""
    # Ids are mixed, for clients that go round a few kinds of prompts.
    return [item for item in able if (item.id * _MIXING >> 16) % _SCOUTS == 0] or list(able[-1:])
