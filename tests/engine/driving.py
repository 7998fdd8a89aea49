"""Drives an engine by hand and keeps what it says about each request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.openvino_graphs import OpenVinoBackend
from engine.outputs import RequestOutput
from engine.policy import DraftPolicy, ScheduledPolicy
from engine.request import GenerationRequest
from engine.runner import Runner, SequenceInput
from engine.scheduler import EngineConfig
from speculators.base import Requirements, Speculator
from speculators.graphs import DrafterRows
from speculators.none import NoSpeculator
from speculators.outcome import StepOutcome
from speculators.tree import ROOT, TokenTree
from tests.tiny import MAX_LENGTH, NUM_BLOCKS, THREADS

VOCABULARY = 265


@dataclass(slots=True)
class Outcome:
    """The events of one request."""

    events: list[RequestOutput] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.events for token in event.tokens]

    @property
    def log_probs(self) -> list[float]:
        return [value for event in self.events for value in event.log_probs]

    @property
    def last(self) -> RequestOutput:
        """The final event; there must be one, and nothing after it."""
        assert [event.finish_reason is not None for event in self.events] == [False] * (
            len(self.events) - 1
        ) + [True]
        return self.events[-1]

    @property
    def finished(self) -> bool:
        return bool(self.events) and self.events[-1].finish_reason is not None


def make_engine(
    runner: Runner,
    speculator: Speculator | Sequence[Speculator] | None = None,
    *,
    policy: DraftPolicy | None = None,
    longest_draft: Callable[[int], int | None] = lambda batch_size: None,
    adaptive_drafts: bool = True,
    **limits: Any,
) -> Engine:
    """An engine with limits that suit the tiny targets; prompts are read in chunks of one size.

    Its policy is a scheduled one for the speculators, unless it is given.
    """
    limits = {"max_sequence_length": MAX_LENGTH, **limits}
    limits.setdefault("idle_prefill_chunk", limits.get("prefill_chunk", 128))
    speculators = [speculator] if isinstance(speculator, Speculator) else speculator
    policy = policy or ScheduledPolicy(
        speculators or [NoSpeculator()], longest_draft=longest_draft, adaptive=adaptive_drafts
    )
    return Engine(runner, policy, EngineConfig(**limits))


def submit(engine: Engine, request: GenerationRequest) -> Outcome:
    """Queue a request and collect its events."""
    outcome = Outcome()
    engine.submit(request, outcome.events.append)
    return outcome


def run(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """Submit all requests, step until nothing is left, and see that nothing is."""
    outcomes = [submit(engine, request) for request in requests]
    while engine.step():
        pass
    check_empty(engine)
    return outcomes


def check_empty(engine: Engine) -> None:
    """Nothing runs, nothing waits, no cache block is in use, and what is kept for later gives its blocks back."""
    statistics = engine.statistics
    assert engine.idle
    assert (statistics.waiting, statistics.prefilling, statistics.decoding) == (0, 0, 0)
    assert statistics.used_blocks == 0
    engine._cache.clear()
    assert engine._cache._pool.free == engine._cache._pool.num_blocks


def generate(
    runner: Runner,
    request: GenerationRequest,
    speculator: Speculator | Sequence[Speculator] | None = None,
    **limits: Any,
) -> Outcome:
    """What the request gives when nothing else runs."""
    return run(make_engine(runner, speculator, **limits), [request])[0]


def plain(runner: Runner, request: GenerationRequest) -> list[int]:
    """Its tokens by plain decoding, ignoring whatever may end it early."""
    return generate(runner, replace(request, stop_sequences=(), end_ids=frozenset(), min_tokens=0)).tokens


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    """A random prompt."""
    return tuple(np.random.default_rng([seed, length]).integers(0, VOCABULARY, length).tolist())


class BranchingOracle(Speculator):
    """Proposes trees with what plain decoding emits and, before each such token, a wrong sibling.

    Args:
        outputs: for each prompt the tokens that plain decoding emits after it.
        max_draft_length: most nodes.
    """

    name = "branching oracle"
    requirements = Requirements(max_branches=64)

    def __init__(self, outputs: Mapping[tuple[int, ...], Sequence[int]], max_draft_length: int) -> None:
        self.max_draft_length = max_draft_length
        self._outputs = outputs
        self._left: dict[int, list[int]] = {}

    def start(self, request_id: int, prompt: Sequence[int], rows: DrafterRows | None = None) -> None:
        self._left[request_id] = list(self._outputs[tuple(prompt)])

    def propose(self, request_ids: Sequence[int], budgets: Sequence[int]) -> list[TokenTree]:
        return [
            self._tree(self._left[request_id], budget)
            for request_id, budget in zip(request_ids, budgets, strict=True)
        ]

    def observe(self, request_id: int, outcome: StepOutcome) -> None:
        del self._left[request_id][: len(outcome.emitted)]

    def finish(self, request_id: int) -> None:
        del self._left[request_id]

    def _tree(self, known: Sequence[int], budget: int) -> TokenTree:
        """A wrong token beside every right one, the right ones last."""
        tokens: list[int] = []
        parents: list[int] = []
        parent = ROOT
        for token in known:
            if len(tokens) + 2 > budget:
                break
            tokens += [(token + 1) % VOCABULARY, token]
            parents += [parent, parent]
            parent = len(tokens) - 1
        return TokenTree(tuple(tokens), tuple(parents))


class WatchedRunner(CompiledRunner):
    """A real runner that remembers its inputs in `batches`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, OpenVinoBackend(THREADS), num_blocks=NUM_BLOCKS)
        self.batches: list[list[SequenceInput]] = []

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        self.batches.append(list(batch))
        return super().forward(batch)


class PoisonedRunner(CompiledRunner):
    """A real runner that spoils the logits of the inputs that `poisoned` picks."""

    def __init__(self, directory: Path, poisoned: Callable[[SequenceInput], bool]) -> None:
        super().__init__(directory, OpenVinoBackend(THREADS), num_blocks=NUM_BLOCKS)
        self._poisoned = poisoned

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        logits, row = super().forward(batch), 0
        for item in batch:
            count = len(item.tokens) - item.logits_from
            if self._poisoned(item):
                logits[row : row + count, 17] = np.nan
            row += count
        return logits


class BrokenRunner(CompiledRunner):
    """A real runner whose forward pass fails after `calls` calls, until it is repaired."""

    def __init__(self, directory: Path, calls: int) -> None:
        super().__init__(directory, OpenVinoBackend(THREADS), num_blocks=NUM_BLOCKS)
        self._left: float = calls

    def repair(self) -> None:
        self._left = float("inf")

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the device is gone")
        return super().forward(batch)
