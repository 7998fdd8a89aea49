"""What a controller keeps in mind: of its ways of drafting, of requests, of batches, and of a step in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.control.costs import LiveCosts
from engine.control.survival import Fate, History, SurvivalEstimate
from engine.running import RunningRequest
from speculators.base import Speculator
from speculators.match import Repetition
from speculators.tree import TokenTree

Floats = NDArray[np.float64]
_FIRST_TRIALS = 50  # drafts after which what was seen decides
_MEMORY = 0.98  # of the average worth of a step, with each further one


@dataclass(slots=True)
class Way:
    """A deployment's drafting.

    Attributes:
        name: of the deployment.
        speculators: the one to be asked first in front.
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

    @property
    def most(self) -> int:
        """Nodes of its longest draft."""
        return max(each.max_draft_length for each in self.speculators)

    @property
    def unseen(self) -> bool:
        """Whether what is accepted of its drafts is still mostly guessed."""
        return self.guessed and self.trials < _FIRST_TRIALS


@dataclass(slots=True)
class RequestState:
    """What is known of a running request: its text's repetitions, and by way of drafting how it fared.

    `most` is the longest draft that it asked for, `read` how many of its tokens have been read by drafters that cost
    something.
    """

    text: Repetition
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
    """Of a step at a batch: tokens and milliseconds in relation to those of plain decoding, averages of late."""

    tokens: float = 1.0
    milliseconds: float = 1.0
    idle: int = 0  # steps in a row of which nothing was verified

    steps: int = 0

    def add(self, tokens: float, milliseconds: float) -> None:
        """Take in a step: the first few count as much as all before them."""
        self.steps += 1
        share = max(1 - _MEMORY, 1 / (1 + self.steps))
        self.tokens += share * (tokens - self.tokens)
        self.milliseconds += share * (milliseconds - self.milliseconds)


@dataclass(slots=True)
class Step:
    """A step in the making: requests that decode, and what drafts of each size cost."""

    decoding: int
    context: float
    worth: Worth
    verify: Floats = field(default_factory=lambda: np.zeros(1))
    drafting_ms: float = 0.0
    nodes: dict[str, int] = field(default_factory=dict)
    expected: float = 0.0

    @property
    def rate(self) -> float:
        """Tokens that a millisecond is worth."""
        return self.worth.tokens / self.worth.milliseconds * self.decoding / float(self.verify[0])
