"""Drafts as a plan says: for each step the way of drafting that is best for so many requests and so much context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.plan import Candidate, Plan
from engine.policy import Assignment, Choice, Proposal, StaticPolicy
from engine.running import RunningRequest
from speculators.base import Speculator
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree


class PlannedPolicy:
    """The methods are those of `engine.policy.DraftPolicy`.

    Args:
        plan: says what to draft with.
        deployments: the speculators of each deployment that it serves, the one to be asked first in front.
    """

    def __init__(self, plan: Plan, deployments: Mapping[str, Sequence[Speculator]]) -> None:
        self.speculators: Sequence[Speculator] = [each for group in deployments.values() for each in group]
        self._plan = plan
        self._ways = {
            (name, adaptive): StaticPolicy(group, adaptive=adaptive)
            for name, group in deployments.items()
            for adaptive in (True, False)
        }

    def begin(self, item: RunningRequest) -> bool:
        begun = [way.begin(item) for way in self._ways.values()]
        return any(begun)

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        decoding = [item for item in running if not item.in_prefill]
        if not decoding:
            return [()] * len(running)
        context = sum(item.cached for item in decoding) / len(decoding)
        chosen = self._plan.choice(len(decoding), context)
        way = self._ways.get((chosen.deployment or "", chosen.adaptive))
        if way is None:
            return [()] * len(running)
        return [_limited(choices, chosen) for choices in way.assign(running)]

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        return [proposal.tree for proposal in proposals]

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        for way in self._ways.values():
            if proposal is None or proposal.speculator in {each.name for each in way.speculators}:
                way.learn(proposal, item, outcome)

    def end(self, item: RunningRequest) -> None:
        for way in self._ways.values():
            way.end(item)


def _limited(choices: Assignment, chosen: Candidate) -> Assignment:
    return [Choice(each.speculator, min(each.budget, chosen.draft_length)) for each in choices]
