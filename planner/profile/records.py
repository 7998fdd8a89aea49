"""Raw records of drafting: for every step what was proposed, and which of it was accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from engine.policy import Assignment, DraftPolicy, Proposal, StepCost
from engine.running import RunningRequest
from speculators.match import Repetition
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
        path: numbers of the accepted nodes; a draft of fewer nodes would have had the first ones.
        context: tokens that were known when it was drafted, -1 if that was not written down.
        match: how many of them at the end stood there before (`speculators.match`), -1 likewise.
    """

    nodes: int
    depth: int
    children: tuple[int, ...]
    ranks: tuple[int, ...]
    path: tuple[int, ...]
    context: int = -1
    match: int = -1


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
        self._texts: dict[int, Repetition] = {}

    def begin(self, item: RunningRequest) -> Sequence[str]:
        self.drafts[item.id] = []
        self._texts[item.id] = Repetition(item.request.prompt)
        return self._policy.begin(item)

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        return self._policy.assign(running)

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        return self._policy.select(proposals)

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        self._policy.learn(proposal, item, outcome)
        text = self._texts[item.id]
        if outcome.tree.drafted and not outcome.ended:
            found = follow(outcome.tree, outcome.emitted)
            self.drafts[item.id].append(replace(found, context=text.length, match=text.match))
        text.extend(outcome.emitted)

    def ran(self, cost: StepCost) -> None:
        self._policy.ran(cost)

    def end(self, item: RunningRequest) -> None:
        del self._texts[item.id]
        self._policy.end(item)


def follow(tree: TokenTree, emitted: Sequence[int]) -> StepRecord:
    """Which way through the tree the emitted tokens took."""
    children: list[int] = []
    ranks: list[int] = []
    path: list[int] = []
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
        path.append(node)
    return StepRecord(tree.drafted, tree.depth, tuple(children), tuple(ranks), tuple(path))


def load_records(path: Path) -> list[RequestRecord]:
    """The records that `drafthouse profile` wrote.

    Raises:
        ValueError: the file is damaged, or of an earlier release.
        OSError: it cannot be read.
    """
    found = TypeAdapter(RequestRecord)
    try:
        return [found.validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValidationError as error:
        raise ValueError(f"{path} has records of another release: {error.errors()[0]['msg']}") from None
