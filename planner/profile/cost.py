"""What drafting and verification cost: milliseconds by batch size and by tokens, alternating in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.compiled_runner import CompiledRunner
from planner.bench.measure import CONTEXT, MOST_TOKENS, VerificationStep, fill_cache, repeated
from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome

_REPEATS = 4  # drafts of one subject in one round

Report = Callable[[str, float], None]


def longest_request(tokens: int) -> int:
    """Tokens that there must be room for in each request while steps with so many are measured."""
    return CONTEXT + max(tokens + 2 * _REPEATS, MOST_TOKENS)


class Drafting:
    """Requests of a batch that have read `CONTEXT` tokens, and what a draft for all of them costs.

    Args:
        speculator: what drafts.
        hidden_size: of the target.
        blocks: cache blocks of each request.
        batch: requests.
    """

    def __init__(self, speculator: Speculator, hidden_size: int, blocks: int, batch: int) -> None:
        self._speculator, self._batch, self._blocks = speculator, batch, blocks
        self._random = np.random.default_rng(0)
        self._width = hidden_size

    def start(self) -> None:
        """Begin the requests and read their prompts."""
        self._begin(read=0)
        self._propose(1)

    def _begin(self, read: int) -> None:
        """Start each request with so many rows of its prompt in place, and give the states of the others."""
        for request in range(self._batch):
            rows = DrafterRows(range(request * self._blocks, (request + 1) * self._blocks), read)
            self._speculator.start(request, [7 + row % 50 for row in range(CONTEXT)], rows)
            self._speculator.observe(request, self._outcome([7], CONTEXT - read))
        while any(self._speculator.catch_up(range(self._batch), CONTEXT)):
            pass

    def finish(self) -> None:
        """End them."""
        for request in range(self._batch):
            self._speculator.finish(request)

    def milliseconds(self, nodes: int) -> float:
        """Median of a draft of so many nodes for each request, behind its prompt."""
        self.finish()
        self._begin(read=CONTEXT - 1)
        return repeated(lambda: self._propose(nodes), _REPEATS)

    def _propose(self, nodes: int) -> float:
        started = time.perf_counter()
        trees = self._speculator.propose(range(self._batch), [nodes] * self._batch)
        elapsed = (time.perf_counter() - started) * 1e3
        for request, tree in enumerate(trees):
            emitted = [*tree.tokens[:1], 9]  # one accepted token and the target's own
            self._speculator.observe(request, self._outcome(emitted, len(emitted)))
        return elapsed

    def _outcome(self, emitted: Sequence[int], rows: int) -> StepOutcome:
        layers, shape = self._speculator.requirements.hidden_layers, (rows, self._width)
        hidden = {layer: self._random.standard_normal(shape, np.float32) for layer in layers}
        return StepOutcome(emitted, kept=range(rows), hidden=hidden)


@contextmanager
def _drafting(speculator: Speculator, hidden_size: int, blocks: int, batch: int) -> Iterator[Drafting]:
    requests = Drafting(speculator, hidden_size, blocks, batch)
    requests.start()
    try:
        yield requests
    finally:
        requests.finish()


def measure_costs(
    runner: CompiledRunner,
    speculator: Speculator,
    *,
    batches: Sequence[int],
    tokens: Sequence[int],
    rounds: int,
    report: Report = lambda line, share: None,
) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds a step, raw, one figure a round.

    Drafts of all lengths are measured behind the same prompts, which are read once a round: that takes longer than
    all drafts.

    Args:
        runner: the target; its cache must hold the largest batch.
        speculator: what drafts; no request of its own may be running.
        batches: requests of a step.
        tokens: of verification, tokens of a request in a step; one less are drafted.
        rounds: how often each is measured; one more round warms up.
        report: gets what is measured, and the share of all that is done.

    Returns:
        `verify` and `draft`: `batch`, `tokens` (of drafts: nodes) and `ms`.
    """
    most = speculator.max_draft_length
    nodes = sorted({min(count, most) for count in (1, *(value - 1 for value in tokens)) if count > 0})
    drafts = nodes if most else []
    blocks = -(-longest_request(max(tokens, default=1)) // runner.block_size)
    verify = {(batch, count): VerificationStep(runner, batch, count) for batch in batches for count in tokens}
    figures: dict[tuple[str, int, int], list[float]] = {
        **{("verify", *key): [] for key in verify},
        **{("draft", batch, count): [] for batch in batches for count in drafts},
    }
    # What is still to come is weighed by the tokens that pass through: a batch of 16 takes longer than one of 1.
    whole, done = (rounds + 1) * sum(batches), 0
    fill_cache(runner, range(max(batches)))
    for number in range(rounds + 1):
        title = "warming up" if number == 0 else f"round {number} of {rounds}"
        for batch in batches:
            report(f"costs: {title}, batch {batch}", done / whole)
            found = {("verify", batch, count): verify[batch, count]() for count in tokens}
            if drafts:
                with _drafting(speculator, runner.manifest.hidden_size, blocks, batch) as requests:
                    found |= {("draft", batch, count): requests.milliseconds(count) for count in drafts}
            for key, value in found.items() if number else ():
                figures[key].append(round(value, 4))
            done += batch
    return {
        kind: [
            {"batch": batch, "tokens": count, "ms": row}
            for (name, batch, count), row in figures.items()
            if name == kind
        ]
        for kind in ("verify", "draft")
    }
