"""What drafting and verification cost: milliseconds by batch size and by tokens, alternating in rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.compiled_runner import CompiledRunner
from planner.bench.measure import CONTEXT, VerificationStep
from speculators.base import Speculator
from speculators.graphs import DrafterRows

_REPEATS = 4  # drafts of one subject in one round


class DraftStep:
    """Median milliseconds of drafting so many nodes for each of so many requests, after `CONTEXT` tokens."""

    def __init__(
        self, speculator: Speculator, hidden_size: int, block_size: int, batch: int, nodes: int
    ) -> None:
        self._speculator, self._batch, self._nodes = speculator, batch, nodes
        self._random = np.random.default_rng(0)
        self._width = hidden_size
        self._blocks = -(-(CONTEXT + 2 * (_REPEATS + 1) + nodes) // block_size)

    def __call__(self) -> float:
        requests = range(self._batch)
        for request in requests:
            rows = DrafterRows(range(request * self._blocks, (request + 1) * self._blocks))
            self._speculator.start(request, [7 + row % 50 for row in range(CONTEXT)], rows)
            self._speculator.observe(request, [7], self._hidden(CONTEXT))
        self._propose()  # reads what is left of the prompts
        times = [self._propose() for _ in range(_REPEATS)]
        for request in requests:
            self._speculator.finish(request)
        return statistics.median(times)

    def _propose(self) -> float:
        started = time.perf_counter()
        trees = self._speculator.propose(range(self._batch), [self._nodes] * self._batch)
        elapsed = (time.perf_counter() - started) * 1e3
        for request, tree in enumerate(trees):
            emitted = [*tree.tokens[:1], 9]  # one accepted token and the target's own
            self._speculator.observe(request, emitted, self._hidden(len(emitted)))
        return elapsed

    def _hidden(self, rows: int) -> Any:
        layers = len(self._speculator.needs_hidden)
        return self._random.standard_normal((rows, layers, self._width), np.float32) if layers else None


def measure_costs(
    runner: CompiledRunner,
    speculator: Speculator,
    *,
    batches: Sequence[int],
    tokens: Sequence[int],
    rounds: int,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds a step, raw, one figure a round.

    Args:
        runner: the target; its cache must hold the largest batch.
        speculator: what drafts; no request of its own may be running.
        batches: requests of a step.
        tokens: of verification, tokens of a request in a step; one less are drafted.
        rounds: how often each is measured; one more round warms up.
        report: gets a line a round.

    Returns:
        `verify` and `draft`: `batch`, `tokens` (of drafts: nodes) and `ms`.
    """
    subjects: list[tuple[str, int, int, Callable[[], float]]] = []
    most = speculator.max_draft_length
    for batch in batches:
        subjects += [("verify", batch, count, VerificationStep(runner, batch, count)) for count in tokens]
        drafts = sorted({min(count, most) for count in (1, *(value - 1 for value in tokens)) if count > 0})
        for nodes in drafts if most else ():
            step = DraftStep(speculator, runner.manifest.hidden_size, runner.block_size, batch, nodes)
            subjects.append(("draft", batch, nodes, step))
    figures: list[list[float]] = [[] for _ in subjects]
    for number in range(rounds + 1):
        report("costs: warming up" if number == 0 else f"costs: round {number} of {rounds}")
        for row, (_, _, _, subject) in zip(figures, subjects, strict=True):
            value = subject()
            if number:
                row.append(round(value, 4))
    found: dict[str, list[dict[str, Any]]] = {"verify": [], "draft": []}
    for (kind, batch, count, _), row in zip(subjects, figures, strict=True):
        found[kind].append({"batch": batch, "tokens": count, "ms": row})
    return found
