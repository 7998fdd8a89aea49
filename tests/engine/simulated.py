"""An engine on a table, whose steps take exactly as long as they are said to: on a clock that nothing else moves.

Example::

    world = World(lambda context, batch, rows: 10.0 + rows)
    engine = world.engine(StaticPolicy([world.lookup()], adaptive=False))
    rate = world.serve(engine, concurrency=4, steps=300)     # tokens a millisecond
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.control.controller import Controller
from engine.engine import Engine
from engine.outputs import RequestOutput
from engine.plan import Plan
from engine.policy import DraftPolicy, StaticPolicy
from engine.request import GenerationRequest
from engine.runner import SequenceInput
from engine.scheduler import EngineConfig
from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.none import NoSpeculator
from speculators.outcome import StepOutcome
from speculators.tree import EMPTY, TokenTree
from tests.engine.tables import VOCABULARY, TableRunner, following, mixed
from tests.planner.synthetic_plan import plan_from
from tests.planner.synthetic_profile import profile, records

Cost = Callable[[float, int, int], float]
"""Milliseconds of a step by context, requests that decode, and their tokens in all."""
LENGTH, SLOTS = 128, 16


class TimedRunner(TableRunner):
    """Moves the clock of its world by what a step costs."""

    def __init__(self, world: World) -> None:
        super().__init__(num_blocks=SLOTS * LENGTH // 8, hidden_layers=world.hidden_layers)
        self._world = world

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        decoding = [item for item in batch if not item.is_prompt]
        if decoding:
            context = sum(item.past for item in decoding) / len(decoding)
            rows = sum(len(item.tokens) for item in decoding)
            self._world.now += self._world.cost(context, len(decoding), rows)
        self._world.now += self._world.read_ms * sum(item.is_prompt for item in batch)
        self.batches.clear()
        return super().forward(batch)


class Guesser(Speculator):
    """Knows what mostly follows two tokens; of `wrong` out of 64 drafted tokens it says another.

    Args:
        world: whose clock its calls move by `call_ms` and for each token by `token_ms`.
    """

    def __init__(
        self, world: World, draft_length: int, wrong: int, call_ms: float, token_ms: float, name: str
    ) -> None:
        self.name, self.max_draft_length = name, draft_length
        self._world, self._wrong, self._call_ms, self._token_ms = world, wrong, call_ms, token_ms
        self._texts: dict[int, list[int]] = {}
        self.calls, self.begun, self.costs = 0, 0, call_ms + token_ms > 0

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._texts[request_id] = list(prompt)
        self.begun += 1

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        self.calls += 1
        longest = max(min(budget, self.max_draft_length) for budget in budgets)
        self._world.now += self._call_ms + self._token_ms * longest
        return [self._chain(*pair) for pair in zip(request_ids, budgets, strict=True)]

    def _chain(self, request_id: int, budget: int) -> TokenTree:
        text = list(self._texts[request_id])
        first = len(text)
        for _ in range(min(budget, self.max_draft_length)):
            token = following(*text[-2:])
            wrong = mixed(*text[-3:], len(text)) % 64 < self._wrong
            text.append((token + 1) % VOCABULARY if wrong else token)
        return TokenTree.chain(tuple(text[first:])) if len(text) > first else EMPTY

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        self._texts[request_id] += outcome.emitted

    def finish(self, request_id: int) -> None:
        del self._texts[request_id]


class World:
    """Costs, and the clock.

    Args:
        cost: of a step; may be changed at any time.
        read_ms: of a piece of a prompt.
        hidden_layers: whose states the target gives.
    """

    def __init__(self, cost: Cost, read_ms: float = 0.0, hidden_layers: Sequence[int] = ()) -> None:
        self.cost, self.read_ms, self.now = cost, read_ms, 0.0
        self.hidden_layers = hidden_layers
        self.emitted = 0
        self.requests = 0
        self._running: set[int] = set()

    def guesser(
        self,
        length: int = 15,
        *,
        wrong: int = 0,
        call_ms: float = 0.0,
        token_ms: float = 0.0,
        name: str = "mine",
    ) -> Guesser:
        return Guesser(self, length, wrong, call_ms, token_ms, name)

    def engine(self, policy: DraftPolicy | None = None) -> Engine:
        limits = EngineConfig(max_batch_size=SLOTS, max_sequence_length=LENGTH, kv_cache_reuse=False)
        policy = policy or StaticPolicy([NoSpeculator()])
        return Engine(TimedRunner(self), policy, limits, lambda: self.now / 1e3)

    def serve(
        self, engine: Engine, concurrency: int, steps: int, *, max_tokens: int = 80, **request: Any
    ) -> float:
        """Tokens a millisecond of `steps` steps of `concurrency` requests each; goes on with those that run."""
        running = self._running
        started, emitted = self.now, self.emitted
        for _ in range(steps):
            while len(running) > concurrency:
                engine.cancel(next(iter(running)))
            while len(running) < concurrency:
                self.requests += 1
                prompt = tuple(mixed(self.requests, place) % VOCABULARY for place in range(6))
                asked = GenerationRequest(prompt, max_tokens, **request)
                running.add(engine.submit(asked, self._count))
            engine.step()
        return (self.emitted - emitted) / (self.now - started)

    def _count(self, event: RequestOutput) -> None:
        self.emitted += len(event.tokens)
        if event.finish_reason:
            self._running.discard(event.request_id)


def planned_costs(cost: Cost) -> Callable[[int, int, int], float]:
    """As profiles have them: by tokens of each request."""
    return lambda context, batch, size: cost(context, batch, batch * size)


def controlled(
    world: World,
    cost: Cost,
    guessers: Sequence[Guesser],
    rates: Sequence[float],
    draft: Callable[[int, int, int], float] = lambda context, batch, nodes: 0.0,
) -> Controller:
    """A controller whose plan has these costs, and drafts accepted at these rates.

    Args:
        draft: milliseconds of drafting, of all guessers.
    """
    known = tuple((each.name, each.max_draft_length) for each in guessers)
    plan = _planned(cost, draft, tuple(zip(known, rates, strict=True)))
    return Controller(plan, {each.name: [each] for each in guessers}, SLOTS)


@cache  # it takes as long as some hundred steps
def _planned(
    cost: Cost,
    draft: Callable[[int, int, int], float],
    guessers: Sequence[tuple[tuple[str, int], float]],
) -> Plan:
    found = [
        profile(records(rate, drafted=length), planned_costs(cost), draft, name=name)
        for (name, length), rate in guessers
    ]
    return plan_of(found)


def plan_of(found: Sequence[Any]) -> Plan:
    return plan_from(found, (1, 2, 4, 8))
