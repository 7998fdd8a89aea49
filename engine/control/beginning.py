"""What a controller begins with: a plan, or without one what is measured at start and a guess of what is accepted.

A guess need not be good. Steps and drafts are run before the first request (`engine.control.calibration`), so of costs
only how the points between depend on each other is guessed. What becomes of drafts replaces the guess of acceptance
(`engine.control.survival`); a drafter that costs something is tried often until enough is seen of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.plan import CostPoint, Survival
from speculators.base import Speculator

_CONTEXTS = (32, 512)  # and the longest that there is room for
_SPARE = 16  # tokens of a request that measured steps and drafts leave free
_MS = 20.0  # of a step with one token, as long as nothing is known


class Drafting(Protocol):
    """Of one deployment.

    Attributes:
        draft_costs: of drafts, every context, batch and size once; none where they cost next to nothing.
        survival: what was counted; nothing where that is not known.
    """

    @property
    def draft_costs(self) -> Sequence[CostPoint]: ...
    @property
    def survival(self) -> Sequence[Survival]: ...


class Beginning(Protocol):
    """What `engine.plan.Plan` has of it.

    Attributes:
        verify_costs: of the target's steps, every context, batch and size once.
        buckets: numbers of tokens that steps are padded to.
        deployments: by name.
    """

    @property
    def verify_costs(self) -> Sequence[CostPoint]: ...
    @property
    def buckets(self) -> Sequence[int]: ...
    @property
    def deployments(self) -> Mapping[str, Drafting]: ...


@dataclass(frozen=True, slots=True)
class MeasuredDrafting:
    """A `Drafting` without a plan."""

    draft_costs: Sequence[CostPoint] = ()
    survival: Sequence[Survival] = ()


@dataclass(frozen=True, slots=True)
class MeasuredBeginning:
    """A `Beginning` without a plan."""

    verify_costs: Sequence[CostPoint]
    buckets: Sequence[int]
    deployments: Mapping[str, Drafting]


def guessed_steps(slots: int, most: int, longest: int) -> list[CostPoint]:
    """Costs of steps, to be measured.

    Args:
        slots: requests at once.
        most: tokens of a request.
        longest: nodes of a draft.
    """
    return [
        CostPoint(context=context, batch=batch, tokens=tokens, ms=_step_ms(context, batch, tokens))
        for context in _contexts(most, longest)
        for batch in _doubling(slots)
        for tokens in sorted({*_doubling(longest), 1 + longest})
    ]


def guessed_drafts(slots: int, most: int, longest: int) -> list[CostPoint]:
    """Likewise of drafts: a tenth of a step for each level."""
    return [
        CostPoint(context=context, batch=batch, tokens=nodes, ms=nodes * _step_ms(context, batch, 1) / 10)
        for context in _contexts(most, longest)
        for batch in _doubling(slots)
        for nodes in _doubling(longest)
    ]


def guessed_survival(speculators: Sequence[Speculator]) -> list[Survival]:
    """What is accepted of their drafts, for so few that what is seen soon counts for more.

    Of a tree, whose likeliest nodes come first, the n-th in one of 2n. Of a chain nothing: each further node is then
    taken to be half as likely (`engine.control.survival`).
    """
    if not any(each.requirements.max_branches for each in speculators):
        return []
    nodes = range(1, 1 + max(each.max_draft_length for each in speculators))
    return [Survival(match=0, tried=[2 * node for node in nodes], accepted=[1 for _ in nodes])]


def _contexts(most: int, longest: int) -> list[int]:
    room = max(1, most - 1 - longest - _SPARE)
    return sorted({*(context for context in _CONTEXTS if context < room), room})


def _doubling(last: int) -> list[int]:
    """1, 2, 4, ... and the last."""
    return sorted({*(1 << power for power in range(last.bit_length())), last})


def _step_ms(context: int, batch: int, tokens: int) -> float:
    return _MS * (1 + batch * tokens / 10 + batch * context / 16000)
