"""Toy speculators that need what Lookahead and windowed drafting need, and policies that change their mind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.policy import Assignment, Choice, StaticPolicy
from engine.running import RunningRequest
from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.target_access import TargetAccess, TargetInput
from speculators.tree import ROOT, TokenTree


class Prober(Speculator):
    """Lookahead in small: drafts what the target has said at a node of a step, accepted or not.

    Beside a draft of one token each tree holds two probe tokens below the root and one below the first of them. What
    the target says after each is kept by the token before it, and drafted when that comes again.
    """

    name = "prober"
    max_draft_length = 1
    requirements = Requirements(max_branches=4, max_probes=3, target_tokens=2, scratch_rows=3)

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._texts: dict[int, list[int]] = {}
        self.said: dict[int, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
        """By request: contexts, and what the target said after each at a node that was not accepted."""
        self.outcomes: list[StepOutcome] = []

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._texts[request_id], self.said[request_id] = list(prompt), []

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        trees = []
        for request_id in request_ids:
            text, said = self._texts[request_id], self.said[request_id]
            known = [tokens[0] for context, tokens in said if context[-1] == text[-1]]
            probes = [(text[-1] + step) % self._vocabulary for step in (1, 2, 3)]
            drafted = known[-1:]
            first = len(drafted)
            trees.append(
                TokenTree((*drafted, *probes), (*([ROOT] * first), ROOT, ROOT, first), probes=len(probes))
            )
        return trees

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        text, tree = self._texts[request_id], outcome.tree
        self.outcomes.append(outcome)
        for node in range(len(tree)):
            if node not in outcome.path:
                assert outcome.target_tokens is not None
                path = [node]
                while tree.parents[path[0]] != ROOT:
                    path.insert(0, tree.parents[path[0]])
                context = (*text, *(tree.tokens[each] for each in path))
                self.said[request_id].append((context, tuple(outcome.target_tokens[node + 1].tolist())))
        text += outcome.emitted

    def finish(self, request_id: int) -> None:
        del self._texts[request_id]


class Windowed(Speculator):
    """Windowed drafting in small: the target drafts, on the first block of its cache and the newest ones."""

    name = "windowed"
    requirements = Requirements(drafts_with_target=True)

    def __init__(self, draft_length: int) -> None:
        self.max_draft_length = draft_length
        self._texts: dict[int, list[int]] = {}
        self.target: TargetAccess

    def bind(self, target: TargetAccess) -> None:
        self.target = target

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._texts[request_id] = list(prompt)

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        drafts: list[list[int]] = [[] for _ in request_ids]
        for depth in range(min(max(budgets, default=0), self.max_draft_length)):
            going = [place for place, budget in enumerate(budgets) if depth < budget]
            batch = [self._input(request_ids[place], drafts[place]) for place in going]
            for place, row in zip(going, self.target.run(batch), strict=True):
                drafts[place].append(int(row.argmax()))
        return [TokenTree.chain(draft) for draft in drafts]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._texts[request_id] += outcome.emitted

    def finish(self, request_id: int) -> None:
        del self._texts[request_id]

    def _input(self, request_id: int, draft: Sequence[int]) -> TargetInput:
        size, computed = self.target.block_size, self.target.computed(request_id)
        position = computed + len(draft)
        newest = computed // size
        places = [*range(min(1, newest)), *range(newest, position // size + 1)]
        past = min(1, newest) * size + computed % size + len(draft)
        token = [self._texts[request_id][-1], *draft][-1]
        return TargetInput(request_id, [token], past, position, places)


@dataclass
class Switching(StaticPolicy):
    """Says by how many tokens a request has emitted who drafts for it, and nobody else keeps up."""

    each: Sequence[Speculator]
    who: Callable[[int], Sequence[str]]
    keeps_up: Sequence[str] = ()
    asked: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.each, adaptive=False)

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        assignments: list[Assignment] = []
        for item in running:
            names = [] if item.in_prefill else list(self.who(len(item.output)))
            self.asked += [(len(item.output), name) for name in names]
            most = {each.name: min(each.max_draft_length, item.room) for each in self.each}
            idle = [Choice(name, 0) for name in self.keeps_up if name not in names]
            assignments.append([*(Choice(name, most[name]) for name in names), *idle])
        return assignments
