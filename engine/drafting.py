"""The drafting side of a step: who drafts is asked of the policy, and speculators are asked for their trees.

Speculators of all methods stand side by side here, with those of drafts that come with requests; each is told every
step of each request that it may draft for, whoever drafted, so that the policy may turn to it at any time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from engine.chains import Chain, drafted_in_turns
from engine.outputs import EngineStatistics
from engine.policy import Assignment, Choice, DraftCost, DraftPolicy, Proposal
from engine.running import RunningRequest
from engine.target_access import RunnerAccess
from speculators.base import Speculator
from speculators.given import GIVEN, GivenDrafts
from speculators.outcome import StepOutcome
from speculators.tree import TokenTree


class Drafting:
    """The speculators of an engine, and the policy that chooses among them.

    Args:
        policy: decides, and brings the speculators.
        access: the target, for those that draft with it.
        max_given: most tokens of a draft that comes with a request.
        share: most tokens that a speculator may catch up with in one step.
        statistics: whose `draft_seconds` count the time that all of it takes.
        clock: seconds.

    Attributes:
        spent: of the last step, by speculator.
        seconds: of the last step: of all of them and of the policy, from its choice to what it has learned.

    Raises:
        ValueError: two speculators have the same name.
    """

    def __init__(
        self,
        policy: DraftPolicy,
        access: RunnerAccess,
        *,
        max_given: int,
        share: int,
        statistics: EngineStatistics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._given = GivenDrafts(max_given)
        self.speculators: Mapping[str, Speculator] = {
            each.name: each for each in (self._given, *policy.speculators)
        }
        if len(self.speculators) <= len(policy.speculators):
            names = [each.name for each in policy.speculators]
            raise ValueError(f"speculators of one engine need different names, none of them {GIVEN}: {names}")
        self._policy, self._access = policy, access
        self._share, self._statistics, self._clock = share, statistics, clock
        self.spent: dict[str, DraftCost] = {}
        self.seconds = 0.0
        for each in policy.speculators:
            if each.requirements.drafts_with_target:
                each.bind(access)

    def begin(self, item: RunningRequest) -> None:
        """Say of a request that has just arrived who may draft for it."""
        if item.request.draft:
            item.speculators = (GIVEN,)
        else:
            item.speculators = tuple(self._policy.begin(item))

    def start(self, item: RunningRequest) -> None:
        """A request has been admitted."""
        names = (each.name for each in self._policy.speculators)
        rows = dict(zip(names, item.rows, strict=True))
        for name in item.speculators:
            self.speculators[name].start(item.id, item.request.prompt, rows.get(name))
        if item.request.draft:
            self._given.give(item.id, item.request.draft)

    def propose(self, running: Sequence[RunningRequest]) -> list[Proposal]:
        """What the speculators that the policy has chosen would have verified."""
        started = self._clock()
        self.spent, self.seconds = {}, 0.0
        with self._access.lent():
            proposals = self._proposals(self._caught_up(self._assigned(running)))
        self._took(started)
        return proposals

    def select(self, proposals: Sequence[Proposal]) -> dict[int, Proposal]:
        """What of it is verified in this step, by request id."""
        started = self._clock()
        selected = {proposal.item.id: proposal for proposal in proposals}
        ours = [proposal for proposal in proposals if proposal.speculator != GIVEN]
        for proposal, tree in zip(ours, self._policy.select(ours), strict=True):
            if tree is not proposal.tree:
                selected[proposal.item.id] = replace(proposal, tree=tree)
        self._took(started)
        return selected

    def observe(self, item: RunningRequest, proposal: Proposal | None, outcome: StepOutcome) -> None:
        """Tell everybody what became of a step of a request that somebody may draft for."""
        started = self._clock()
        for name in item.speculators:
            self.speculators[name].observe(item.id, outcome)
        if item.speculates:
            self._policy.learn(proposal, item, outcome)
        self._took(started)

    def finish(self, item: RunningRequest) -> None:
        """A request that was admitted has ended."""
        for name in item.speculators:
            self.speculators[name].finish(item.id)

    def end(self, item: RunningRequest) -> None:
        """Forget a request, admitted or not."""
        self._policy.end(item)

    def _took(self, started: float) -> None:
        seconds = self._clock() - started
        self.seconds += seconds
        self._statistics.draft_seconds += seconds

    def _assigned(self, running: Sequence[RunningRequest]) -> list[tuple[RunningRequest, Assignment]]:
        given: list[tuple[RunningRequest, Assignment]] = [
            (item, (Choice(GIVEN, item.room),))
            for item in running
            if item.request.draft and not item.in_prefill
        ]
        ours = [
            (item, [choice for choice in choices if choice.speculator in item.speculators])
            for item, choices in zip(running, self._policy.assign(running), strict=True)
        ]
        return [*ours, *given]

    def _caught_up(
        self, assigned: Sequence[tuple[RunningRequest, Assignment]]
    ) -> list[tuple[RunningRequest, list[Choice]]]:
        """The choices of each request that can draft now."""
        asked: dict[str, list[int]] = {}
        for item, choices in assigned:
            for choice in choices:
                asked.setdefault(choice.speculator, []).append(item.id)
        behind: set[tuple[str, int]] = set()
        for name, ids in asked.items():
            started = self._clock()
            left = self.speculators[name].catch_up(ids, self._share)
            self.spent[name] = DraftCost(ms=(self._clock() - started) * 1e3)
            behind.update((name, identity) for identity, rows in zip(ids, left, strict=True) if rows)
        return [
            (item, [each for each in choices if each.budget > 0 and (each.speculator, item.id) not in behind])
            for item, choices in assigned
        ]

    def _proposals(self, ready: Sequence[tuple[RunningRequest, list[Choice]]]) -> list[Proposal]:
        """Ask each request's first choice, where it has nothing the next one; each speculator once for all of them."""
        proposals = self._made_in_turns(
            [Chain(item, choices) for item, choices in ready if choices and choices[0].takes_turns]
        )
        asking = [(item, choices) for item, choices in ready if choices and not choices[0].takes_turns]
        while asking:
            groups: dict[str, list[tuple[RunningRequest, list[Choice]]]] = {}
            for item, choices in asking:
                groups.setdefault(choices[0].speculator, []).append((item, choices))
            asking = []
            for name, mine in groups.items():
                budgets = [choices[0].budget for _, choices in mine]
                started, spent = self._clock(), self.spent.setdefault(name, DraftCost())
                trees = self.speculators[name].propose([item.id for item, _ in mine], budgets)
                spent.ms += (self._clock() - started) * 1e3
                spent.requests += len(mine)
                spent.budget = max(spent.budget, *budgets)
                for (item, choices), proposed in zip(mine, trees, strict=True):
                    tree = self._within(item, proposed)
                    if len(tree):
                        self._check(item, choices[0], tree)
                        proposals.append(Proposal(item, name, tree))
                    elif len(choices) > 1:
                        asking.append((item, choices[1:]))
        return proposals

    def _made_in_turns(self, chains: Sequence[Chain]) -> list[Proposal]:
        """What comes of drafts that several speculators go on with."""
        drafted_in_turns(chains, self._extended)
        for chain in chains:
            for name in chain.asked:
                self.spent[name].requests += 1
        return [Proposal(chain.item, chain.began, chain.tree) for chain in chains if len(chain.tree)]

    def _extended(self, name: str, chains: Sequence[Chain], turns: Sequence[Choice]) -> list[TokenTree]:
        """What a speculator adds to each of these drafts."""
        started, spent = self._clock(), self.spent.setdefault(name, DraftCost())
        budgets = [turn.budget for turn in turns]
        found = self.speculators[name].extend(
            [chain.item.id for chain in chains], [chain.tree for chain in chains], budgets
        )
        spent.ms += (self._clock() - started) * 1e3
        longest = max(len(chain.tree) + budget for chain, budget in zip(chains, budgets, strict=True))
        spent.budget = max(spent.budget, longest)
        for chain, turn, more in zip(chains, turns, found, strict=True):
            if len(more):
                self._check(chain.item, turn, more)
        return found

    def _within(self, item: RunningRequest, tree: TokenTree) -> TokenTree:
        """Without the probes, if some would stand at positions that the target does not know."""
        root = len(item.request.prompt) + len(item.output) - 1
        if tree.probes and root + max(tree.depths) >= self._access.positions:
            return tree.truncate(tree.drafted)
        return tree

    def _check(self, item: RunningRequest, choice: Choice, tree: TokenTree) -> None:
        """Refuse what the runner cannot verify: a node too many would be written to a neighbour's cache."""
        vocabulary = self._access.vocab_size
        needs = self.speculators[choice.speculator].requirements
        levels = item.room + 1 + needs.scratch_rows
        if (
            tree.drafted > choice.budget
            or tree.probes > needs.max_probes
            or (tree.probes and max(tree.depths) > levels)
            or max(tree.tokens) >= vocabulary
        ):
            raise ValueError(
                f"speculator {choice.speculator} proposed {tree} to request {item.id}; at most {choice.budget} nodes "
                f"and {needs.max_probes} probes are allowed, with tokens below {vocabulary}, on {levels} levels"
            )
