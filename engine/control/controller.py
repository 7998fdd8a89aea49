"""The adaptive policy: in every step what brings most tokens for its time, drafting nothing included.

What the first B nodes of a step bring is known in expectation (`engine.control.survival`), and what they cost
(`engine.control.costs`). Most tokens a millisecond over many steps are had by verifying those nodes whose tokens are
worth more than their time, where a millisecond is worth the tokens that it brings on average at this batch (Dinkelbach,
"On nonlinear fractional programming", 1967): B maximises tokens(B) - worth x milliseconds(B). As costs rise in steps,
all B are looked at. Prompts that are read in the same step change nothing in that, since their time passes either way.

Before drafting, the same is asked of each way of drafting and length, with the time of drafting added. Lookups cost
next to nothing; they are asked whenever anybody is, and what they find counts.

What is not tried is not known. So now and then, where it is in doubt how two choices compare, the other one is taken
for a step; a drafter that costs something is tried for one request alone.

Asking takes time, too. At a batch at which drafts have brought less than that nobody is asked, but now and then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.control.beginning import Beginning, Drafting, guessed_survival
from engine.control.costs import LiveCosts
from engine.control.decisions import NONE, Decisions
from engine.control.state import TIE, Proposed, RequestState, Step, Way, Worth, scouts, worth_at
from engine.control.survival import Fate, History, SurvivalEstimate
from engine.policy import Assignment, Choice, Proposal, StepCost, draft_in_turns
from engine.running import RunningRequest
from speculators.base import Speculator
from speculators.match import Repetition
from speculators.outcome import StepOutcome
from speculators.requests import Texts
from speculators.tree import EMPTY, TokenTree

Floats = NDArray[np.float64]
_CHEAP = 0.03  # of a step: drafting that takes less is not weighed
_DOUBT = 0.15  # standard deviation of the logarithm of a cost above which it is tried again
_BETWEEN_TRIALS = 16  # steps of a batch
_BETWEEN_DRAFTER_TRIALS = 8, 128  # steps, the least and the most of them,
_TRIALS = 0.005  # and between them as many as make trials of drafters that much of the time
_BETWEEN_FIRST_TRIALS = 4  # of a drafter of which is only guessed what it is worth
_FOR_READING = 2  # steps between requests that are followed for trials, for each token of the later prompt
_TRIAL = 8  # steps, one that asks or more, in which a drafter that has fallen behind comes back for a trial
_WORTH_READING = 0.03  # of a step's tokens: what a drafter has to bring to read prompts along for it
_FOLLOWED = 128  # steps for which requests are still followed after drafting was last worth its time
_ASKED_EVERY = 8  # steps: whether a drafter that follows few requests would be worth its time for all
_KEPT_UP = 256  # tokens that a drafter may fall behind of a request before it is made to read them


class Controller:
    """The methods are those of `engine.policy.DraftPolicy`.

    Args:
        known: a plan, or what was measured at start.
        deployments: the speculators of each of its deployments that is served, the one to be asked first in front.
        most_requests: at once.
    """

    def __init__(
        self, known: Beginning, deployments: Mapping[str, Sequence[Speculator]], most_requests: int
    ) -> None:
        self.speculators: Sequence[Speculator] = [each for group in deployments.values() for each in group]
        self.costs = LiveCosts(known.verify_costs, known.buckets)
        self.ways = {
            name: self._way(name, group, known.deployments[name]) for name, group in deployments.items()
        }
        self.decisions = Decisions(list(self.ways), most_requests)
        self._dear = [way for way in self.ways.values() if way.costs is not None]
        self._cheap = [way for way in self.ways.values() if way.costs is None]
        self._most = max((way.most for way in self.ways.values()), default=0)
        self._of = {each.name: way for way in self.ways.values() for each in way.speculators}
        self._requests: dict[int, RequestState] = {}
        self._texts: Texts[Repetition] = Texts("controller")
        self._worths: dict[int, Worth] = {}
        self._step: Step | None = None
        self._worth: Worth | None = None
        self._slept = 0  # steps in which nobody was asked, since the last one in which somebody was
        self._proposed: dict[int, Proposed] = {}

    def begin(self, item: RunningRequest) -> Sequence[str]:
        asked = item.request.draft_length
        if asked == 0:
            return ()
        ways = [way for way in self.ways.values() if self._follows(way, item)]
        if ways:
            histories = {way.name: History() for way in ways}
            self._requests[item.id] = RequestState(asked, histories)
            self._texts.start(item.id, Repetition(), item.request.prompt)
        return [each.name for way in ways for each in way.speculators]

    def assign(self, running: Sequence[RunningRequest]) -> list[Assignment]:
        self._proposed = {}
        decoding = [item for item in running if not item.in_prefill]
        self._step = self._worth = worth = None
        # What a plan without drafts costs, and requests that want none, is what none costs.
        if self.ways and any(item.request.draft_length != 0 for item in decoding):
            self._worth = worth = worth_at(self._worths, len(decoding))
        if worth is None or (not any(way.unseen for way in self._dear) and worth.sleeps_on()):
            self._slept += worth is not None
            if decoding:
                self.decisions.at(len(decoding)).steps[NONE] += 1
            return [self._kept_up(item, None) for item in running]
        context = sum(item.cached for item in decoding) / len(decoding)
        self._step = step = Step(len(decoding), context, worth)
        step.verify = self.costs.milliseconds(context, len(decoding), len(decoding) * (1 + self._most))
        able = [item for item in decoding if item.id in self._requests and item.room > 0]
        if worth.sleepy and able and not self._dear:
            step.asked = len(able) // len(scouting := scouts(able))
            able = scouting
        chosen = self._chosen(step, able)
        self._slept = 0
        return [self._assignment(item, chosen.get(item.id)) for item in running]

    def select(self, proposals: Sequence[Proposal]) -> list[TokenTree]:
        step = self._step
        if step is None:
            return [proposal.tree for proposal in proposals]
        if not proposals:
            self._tell(step)
            return []
        made = [self._made(proposal) for proposal in proposals]
        expected = [
            each.way.survival(each.match, each.history, each.tree.scores, each.tree.drafted) for each in made
        ]
        pool = np.asarray([value for row in expected for value in row])
        order = np.argsort(-pool, kind="stable")
        count = self._count(step, pool[order])
        step.expected = float(pool[order[:count]].sum())
        owners = np.repeat(np.arange(len(made)), [len(row) for row in expected])
        kept = np.bincount(owners[order[:count]], minlength=len(made)).tolist()
        for each, size in zip(made, kept, strict=True):
            step.nodes[each.way.name] = step.nodes.get(each.way.name, 0) + size
        self._tell(step)
        return [_first(each.tree, size) for each, size in zip(made, kept, strict=True)]

    def learn(self, proposal: Proposal | None, item: RunningRequest, outcome: StepOutcome) -> None:
        request = self._requests[item.id]
        self._texts.extend(item.id, outcome.emitted)
        if outcome.reads_prompt:
            return
        if self._step is not None:
            self.decisions.at(self._step.decoding).emitted_tokens += len(outcome.emitted)
        if (made := self._proposed.get(item.id)) is not None:
            self._watch(request, made, outcome)
        for name, fate in list(request.fates.items()):
            if fate.follow(outcome.emitted):
                self._learn(self.ways[name], request, fate)
                del request.fates[name]

    def ran(self, cost: StepCost) -> None:
        step = self._step
        # What goes before a drafter costs next to nothing, and answers where the drafter is not asked.
        found = [(way, cost.drafts.get(way.speculators[-1].name)) for way in self._dear]
        drafts = [(way, draft) for way, draft in found if draft is not None]
        if self._worth is not None:
            rest = cost.draft_ms - sum(draft.ms for _, draft in drafts)
            self._worth.took(rest, step.asked if step else 0)
        if step is None:
            return
        counts = self.decisions.at(step.decoding)
        if cost.reads or cost.rows < step.decoding:
            return
        rows = min(cost.rows - step.decoding, len(step.verify) - 1)
        counts.planned_ms += self.costs.planned(step.context, step.decoding, cost.rows)
        counts.expected_ms += float(step.verify[rows]) + step.drafting_ms
        counts.measured_ms += cost.verify_ms + cost.draft_ms
        self.costs.learn(step.context, step.decoding, cost.rows, cost.verify_ms)
        for way, draft in drafts:
            if way.costs is not None and draft.requests and draft.budget:
                way.costs.learn(step.context, draft.requests, draft.requests * draft.budget, draft.ms)

    def end(self, item: RunningRequest) -> None:
        if self._requests.pop(item.id, None) is not None:
            self._texts.finish(item.id)
        for way in self.ways.values():
            way.followed.discard(item.id)

    def _follows(self, way: Way, item: RunningRequest) -> bool:
        """Whether a way of drafting is kept at hand for a request that has just arrived.

        A drafter has to read the whole prompt along. That is a tenth of what the target takes, and nothing comes of it
        while drafting is not worth its time; so then it follows one request at a time, to see whether it still is not.
        """
        if way.costs is None:
            return True
        length = len(item.request.prompt)
        due = max(_FOLLOWED, length * _FOR_READING)
        if not way.unseen and way.idle >= _FOLLOWED:
            if way.followed or way.scouted < due:
                return False
            way.scouted = 0
        way.followed.add(item.id)
        return True

    def _way(self, name: str, group: Sequence[Speculator], known: Drafting) -> Way:
        most = max(each.max_draft_length for each in group)
        longest = max((point.ms for point in known.draft_costs if point.batch == 1), default=0.0)
        dear = longest > _CHEAP * self.costs.planned(0, 1, 1)
        costs = LiveCosts(known.draft_costs, of_drafts=True) if dear else None
        guessed = not known.survival
        survival = SurvivalEstimate(known.survival or guessed_survival(group), most, guessed=guessed)
        return Way(name, group, most, survival, costs, draft_in_turns(group), guessed=guessed)

    def _longest(self, item: RunningRequest) -> int:
        """Nodes that a draft for a request may have now."""
        asked = self._requests[item.id].most
        return max(0, min(item.room, self._most, self._most if asked is None else asked))

    def _before(self, item: RunningRequest, way: Way) -> list[float]:
        """Survival of a draft that has not been made yet."""
        request = self._requests[item.id]
        count = min(way.most, self._longest(item))
        return way.survival(self._texts[item.id].match, request.histories[way.name].value, None, count)

    def _chosen(self, step: Step, able: Sequence[RunningRequest]) -> dict[int, tuple[Way, int]]:
        """By request, who drafts for it and how many nodes at most."""
        if not self._dear and len(self._cheap) == 1:  # nothing to choose from
            (only,) = self._cheap
            return {item.id: (only, only.most) for item in able}
        chosen: dict[int, tuple[Way, int]] = {}
        lookups: dict[int, list[float]] = {}
        for item in able:
            found = [(self._before(item, way), way) for way in self._cheap]
            lookups[item.id] = []
            if found:
                lookups[item.id], way = max(found, key=lambda pair: sum(pair[0]))
                chosen[item.id] = way, way.most
        best, drafter = step.value(lookups.values(), 0.0), None
        without = best
        for way in self._dear:
            due = way.idle % _ASKED_EVERY + 1 + self._slept >= _ASKED_EVERY
            way.passed(1 + self._slept)
            rows = {item.id: self._before(item, way) for item in able if way.may_draft(item)}
            longest = max(map(len, rows.values()), default=0)
            if due and len(rows) < step.decoding and self._wanted(way, step, without):
                way.idle = 0
            if not longest or way.costs is None:
                continue
            costs = way.costs.milliseconds(step.context, len(rows), len(rows) * longest)
            for size in range(1, longest + 1):
                milliseconds = float(costs[(size - 1) * len(rows)])
                mixed = [
                    max(rows.get(identity, [])[:size], row, key=sum) for identity, row in lookups.items()
                ]
                value = step.value(mixed, milliseconds)
                if value > best + TIE * step.decoding:
                    best, drafter = value, (way, size, rows, milliseconds)
        if drafter is not None:
            way, size, rows, step.drafting_ms = drafter
            if best > without + _WORTH_READING * step.decoding:
                way.idle = 0
            for identity, row in rows.items():
                if row and sum(row[:size]) >= sum(lookups[identity]):
                    chosen[identity] = way, size
        for way in self._dear:
            self._try(step, way, [item for item in able if way.may_draft(item)], chosen)
        return chosen

    def _wanted(self, way: Way, step: Step, without: float) -> bool:
        """Whether drafting would be worth its time if it could be done for all: for requests like any others."""
        row = way.survival(0, way.lately.value, None, way.most)
        if way.costs is None or not row:
            return False
        costs = way.costs.milliseconds(step.context, step.decoding, step.decoding * len(row))
        values = (
            step.value([row[:size]] * step.decoding, float(costs[(size - 1) * step.decoding]))
            for size in range(1, len(row) + 1)
        )
        return max(values) > without + _WORTH_READING * step.decoding

    def _count(self, step: Step, pool: Floats) -> int:
        """Nodes to verify: the best, or for a trial what is not known well."""
        count, step.brought = step.best(pool, step.verify)
        if step.asked > 1:
            _, step.brought = step.best(np.repeat(pool, step.asked), step.verify)
        worth = step.worth
        if (worth.steps + 1) % _BETWEEN_TRIALS or not len(pool):
            return count
        near = pool[: 2 * max(count, step.decoding)]
        for doubt in (1.0, -1.0):
            # What would be best if more nodes cost less than is thought, or more.
            costs = self.costs.milliseconds(
                step.context, step.decoding, step.decoding + len(step.verify) - 1, doubt
            )
            other, _ = step.best(near, costs)
            if self.costs.doubt(step.context, step.decoding, count, other) > _DOUBT:
                return other
        return count

    def _tell(self, step: Step) -> None:
        """Put down what was decided, and what it is expected to bring."""
        worth, counts, nodes = step.worth, self.decisions.at(step.decoding), sum(step.nodes.values())
        took = float(step.verify[min(nodes, len(step.verify) - 1)]) + step.drafting_ms
        pays = max(0.0, step.brought - step.rate * step.drafting_ms) / step.decoding
        worth.plain_ms = float(step.verify[0])
        worth.add(1 + step.expected / step.decoding, took / float(step.verify[0]), pays)
        for name in [name for name, count in step.nodes.items() if count] or [NONE]:
            counts.steps[name] += 1
            counts.nodes[name] += step.nodes.get(name, 0)
        counts.expected_tokens += step.decoding + step.expected

    def _try(
        self, step: Step, way: Way, able: Sequence[RunningRequest], chosen: dict[int, tuple[Way, int]]
    ) -> None:
        """Let a drafter of which little is known, or that has not been used for long, draft for one request."""
        if not able or way.costs is None:
            return
        draft_ms = float(way.costs.milliseconds(step.context, 1, way.most)[-1])
        if way.unseen:
            way.waited += 1
            if way.waited >= _BETWEEN_FIRST_TRIALS:
                chosen[self._best_to_try(way, able).id] = way, way.most
                step.drafting_ms += draft_ms
                way.waited, way.trials = 0, way.trials + 1
            return
        shortest, longest = _BETWEEN_DRAFTER_TRIALS
        between = min(max(draft_ms / (_TRIALS * float(step.verify[0])), shortest), longest)
        if way.unused >= between and all(found is not way for found, _ in chosen.values()):
            chosen[self._best_to_try(way, able).id] = way, way.most
            step.drafting_ms += draft_ms
            if way.unused >= between + _TRIAL:
                way.unused = 0

    def _best_to_try(self, way: Way, able: Sequence[RunningRequest]) -> RunningRequest:
        """A request of whose last draft the fate is known, and for which little has to be read."""

        def waits(item: RunningRequest) -> tuple[bool, int]:
            request = self._requests[item.id]
            return way.name in request.fates, item.cached - request.read.get(way.name, 0)

        return min(able, key=waits)

    def _assignment(self, item: RunningRequest, chosen: tuple[Way, int] | None) -> Assignment:
        kept_up = self._kept_up(item, chosen[0] if chosen else None)
        if chosen is None:
            return kept_up
        way, size = chosen
        self._requests[item.id].read[way.name] = item.cached
        longest = self._longest(item)
        # A lookup that takes turns goes on for nothing: what it adds is judged when it is there.
        sizes = [longest if way.in_turns else size] * (len(way.speculators) - 1) + [size]
        choices = [
            Choice(each.name, min(most, longest), way.in_turns)
            for each, most in zip(way.speculators, sizes, strict=True)
        ]
        return [*choices, *kept_up]

    def _kept_up(self, item: RunningRequest, but: Way | None) -> list[Choice]:
        """Drafters that are not asked and would fall too far behind of a request."""
        request = self._requests.get(item.id)
        if request is None:
            return []
        found: list[Choice] = []
        for way in self._dear:
            if way is but or not way.may_draft(item):
                continue
            if item.in_prefill or item.cached - request.read.get(way.name, 0) >= _KEPT_UP:
                request.read[way.name] = item.cached
                found += [Choice(each.name, 0) for each in way.speculators]
        return found

    def _made(self, proposal: Proposal) -> Proposed:
        way, request = self._of[proposal.speculator], self._requests[proposal.item.id]
        way.unused, match = 0, self._texts[proposal.item.id].match
        made = Proposed(proposal.tree, way, match, request.histories[way.name].value)
        self._proposed[proposal.item.id] = made
        return made

    def _watch(self, request: RequestState, made: Proposed, outcome: StepOutcome) -> None:
        """Follow what becomes of a draft: of all of it if it is a chain, else of what was verified."""
        way, tree = made.way, made.tree
        if tree.is_chain:
            if way.name not in request.fates:
                request.fates[way.name] = Fate(tree.tokens, made.match, made.history, tree.scores)
        elif outcome.tree.drafted:
            labels = [node in outcome.path for node in range(outcome.tree.drafted)]
            way.survival.learn(made.match, made.history, tree.scores, labels)
            self._fared(way, request, sum(labels), made.match, len(labels))

    def _learn(self, way: Way, request: RequestState, fate: Fate) -> None:
        labels = [node < fate.at for node in range(len(fate.tokens))]
        way.survival.learn(fate.match, fate.history, fate.scores, labels)
        self._fared(way, request, fate.at, fate.match, len(labels))

    def _fared(self, way: Way, request: RequestState, accepted: int, match: int, nodes: int) -> None:
        for history in (request.histories[way.name], way.lately):
            history.add(accepted, way.survival.expected(match, nodes))


def _first(tree: TokenTree, size: int) -> TokenTree:
    """Its first nodes, with its probes if it is whole; nothing of a draft of which no node is worth it."""
    if size >= tree.drafted:
        return tree
    return tree.truncate(size) if size else EMPTY
