"""Raw records of drafting: for every step what was proposed, and which of it was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.policy import Assignment, DraftPolicy, Proposal
from engine.running import RunningRequest
from speculators.outcome import StepOutcome
from speculators.tree import ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One draft and its fate.

    Attributes:
        nodes: its size.
        depth: its levels.
        children: at each node that was reached, the root first, how many guesses were below it.
        ranks: of these nodes but maybe the last, which guess was accepted (0: the first one).
    """

    nodes: int
    depth: int
    children: tuple[int, ...]
    ranks: tuple[int, ...]


@dataclass(slots=True)
class RequestRecord:
    """One request: its drafts, and the tokens and target steps that it took."""

    prompt: str
    category: str
    temperature: float
    tokens: int = 0
    steps: int = 0
    drafts: list[StepRecord] = field(default_factory=list)


class RecordingPolicy:
    """A policy that writes down what becomes of the drafts of another one; the methods are those of ``DraftPolicy``.

    The draft of a request's last step is not among the records: its end may lie before what would have been accepted.

    Args:
        policy: the one that decides.

    Attributes:
        drafts: by request id.
    """

    def __init__(self, policy: DraftPolicy) -> None:
        self.speculators = policy.speculators
        self.drafts: dict[int, list[StepRecord]] = {}
        self._policy = policy

    def begin(self, item: RunningRequest) -> bool:
        self.drafts[item.id] = []
        return self._policy.begin(item)

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        return self._policy.assign(running)

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        return self._policy.select(proposals)

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        self._policy.learn(proposal, item, outcome)
        if outcome.tree.drafted and not outcome.ended:
            self.drafts[item.id].append(follow(outcome.tree, outcome.emitted))

    def end(self, item: RunningRequest) -> None:
        self._policy.end(item)


def follow(tree: TokenTree, emitted: Sequence[int]) -> StepRecord:
    """Which way through the tree the emitted tokens took."""
    children: list[int] = []
    ranks: list[int] = []
    node = ROOT
    for token in emitted:
        below = tree.children(node)
        if not below:
            break
        children.append(len(below))
        tokens = [tree.tokens[child] for child in below]
        if token not in tokens:
            break
        ranks.append(tokens.index(token))
        node = below[ranks[-1]]
    return StepRecord(tree.drafted, tree.depth, tuple(children), tuple(ranks))
