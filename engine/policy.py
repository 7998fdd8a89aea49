"""Who drafts for which request and how deep, which proposed nodes are verified, and what is learned from the outcome.

One object decides all of it, `DraftPolicy`, once a step for all requests. The policies here ask the same speculators
for every request: `StaticPolicy` as deep as the speculator drafts, `ScheduledPolicy` less the more requests share a
step. Neither changes what comes out, only how fast.

Example::

    engine = Engine(runner, StaticPolicy([AnpdSpeculator()]), EngineConfig())
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.running import RunningRequest
from speculators.base import Speculator
from speculators.draft_length import DraftLength
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree


@dataclass(frozen=True, slots=True)
class Choice:
    """One speculator for one request in one step.

    Attributes:
        speculator: its name.
        budget: most nodes to draft; 0: nothing, but it keeps up with the request, to draft at any time.
        takes_turns: whether it drafts in turns with the request's other choices, which do so as well; `budget` is then
            how long the draft may be after its turn.
    """

    speculator: str
    budget: int
    takes_turns: bool = False


Assignment = Sequence[Choice]
"""Speculators for a request, in order: the first that proposes something is the one, if they do not take turns
(`engine.chains`). Those not named fall behind."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a speculator would have verified for a request; of a draft that was made in turns, the one that began it."""

    item: RunningRequest
    speculator: str
    tree: TokenTree


@dataclass(slots=True)
class DraftCost:
    """What drafting with one speculator took in a step.

    Attributes:
        requests: that it was asked for.
        budget: nodes that it was asked for, at most; of drafts that are made in turns, those of whole drafts.
        ms: milliseconds, with those of reading what it had to read before.
    """

    requests: int = 0
    budget: int = 0
    ms: float = 0.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step took.

    Attributes:
        rows: tokens of the requests that decode: roots and nodes.
        reads: whether prompts were read, too.
        verify_ms: milliseconds of all but drafting.
        draft_ms: milliseconds of drafting, of choosing and of learning from what came of it.
        drafts: by speculator.
    """

    rows: int
    reads: bool
    verify_ms: float
    draft_ms: float
    drafts: Mapping[str, DraftCost]


class DraftPolicy(Protocol):
    """Decides about drafts. A request that brings its own draft is never its business.

    Attributes:
        speculators: those that it chooses from, of different names; the engine tells all of them what is emitted.
    """

    @property
    def speculators(self) -> Sequence[Speculator]: ...

    def begin(self, item: RunningRequest) -> Sequence[str]:
        """Which of the speculators may ever draft for a request that has just arrived, by name, in their order.

        The others are never told of it. If there are none, it is not heard of again.
        """

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        """Who drafts in this step, for each of these requests; for one that is still in its prompt, who keeps up.

        Args:
            running: all running requests; those for which drafts may never be made get an empty assignment. Choices of
                speculators that may not draft for a request (`RunningRequest.speculators`) are passed over.
        """

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        """What is verified of each proposal: nodes without which the rest is still a tree may be left out."""

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        """See a step of a request; `proposal` is what was verified, None if nothing was proposed."""

    def ran(self, cost: StepCost) -> None:
        """See what a step took, after all that became of it has been learned."""

    def end(self, item: RunningRequest) -> None:
        """Forget a request."""


@dataclass(slots=True)
class _Lengths:
    """Of one request: how much to draft, and how much of that by those that are asked before the last."""

    all: DraftLength
    first: DraftLength


def draft_in_turns(speculators: Sequence[Speculator]) -> bool:
    """Whether the speculators of a deployment go on with each other's drafts."""
    return any(each.in_turns for each in speculators)


class StaticPolicy:
    """The same speculators for every request, each asked where the ones before it have nothing to propose.

    Lengths follow what was accepted lately (`speculators.draft_length`), unless the last speculator ends its drafts
    itself where it is unsure; then only the lengths of those before it do.

    Args:
        speculators: one or more, the preferred ones first; the last one's draft length is that of all, or the longest
            one's if they draft in turns.
        adaptive: whether lengths follow what was accepted; if not, always the most.
    """

    def __init__(self, speculators: Sequence[Speculator], *, adaptive: bool = True) -> None:
        self.speculators: Sequence[Speculator] = tuple(speculators)
        last = self.speculators[-1]
        self._in_turns = draft_in_turns(self.speculators)
        self._most, ends = last.max_draft_length, last.ends_drafts
        if self._in_turns:
            self._most = max(each.max_draft_length for each in self.speculators)
            ends = all(each.ends_drafts for each in self.speculators)
        self._shortened = adaptive and not ends
        self._first_shortened = last.ends_drafts and not self._in_turns
        self._lengths: dict[int, _Lengths] = {}

    def begin(self, item: RunningRequest) -> Sequence[str]:
        asked = item.request.draft_length
        most = self._most if asked is None else min(self._most, asked)
        if not most:
            return ()
        self._lengths[item.id] = _Lengths(
            DraftLength(most, adaptive=self._shortened),
            DraftLength(self._most, adaptive=self._first_shortened),
        )
        return [each.name for each in self.speculators]

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        limit = self._limit(sum(not item.in_prefill for item in running))
        return [self._choices(item, limit) for item in running]

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        return [proposal.tree for proposal in proposals]

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        if proposal is None or not proposal.tree.drafted:
            return
        lengths, tree = self._lengths[item.id], proposal.tree
        used = [lengths.all]
        if proposal.speculator != self.speculators[-1].name:
            used.append(lengths.first)
        for length in used:
            length.update(tree.drafted, tree.depth, outcome.accepted)

    def ran(self, cost: StepCost) -> None:
        pass

    def end(self, item: RunningRequest) -> None:
        self._lengths.pop(item.id, None)

    def _limit(self, decoding: int) -> int | None:
        """Most tokens to draft for a request while `decoding` decode; None: as many as there may be."""
        return None

    def _choices(self, item: RunningRequest, limit: int | None) -> Assignment:
        lengths = self._lengths.get(item.id)
        if lengths is None:
            return ()
        budget = 0 if item.in_prefill else max(0, min(lengths.all.current, item.room))
        if limit is not None:
            budget = min(budget, limit)
        last = self.speculators[-1].name
        first = min(budget, lengths.first.current)
        return [
            Choice(speculator.name, budget if speculator.name == last else first, self._in_turns)
            for speculator in self.speculators
        ]


class ScheduledPolicy(StaticPolicy):
    """A static policy that drafts less the more requests share a step.

    Args:
        speculators, adaptive: see `StaticPolicy`.
        longest_draft: most tokens to draft for a request, by number of requests that decode, None for no limit
            (`deployments.speculation.Speculation.longest_draft`).
    """

    def __init__(
        self,
        speculators: Sequence[Speculator],
        *,
        longest_draft: Callable[[int], int | None],
        adaptive: bool = True,
    ) -> None:
        super().__init__(speculators, adaptive=adaptive)
        self._longest_draft = longest_draft

    def _limit(self, decoding: int) -> int | None:
        return self._longest_draft(decoding)
