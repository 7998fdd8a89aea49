"""What drafting, verification and reading cost: milliseconds by context, batch and tokens, alternating in rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from engine.compiled_runner import CompiledRunner
from planner.bench.measure import MOST_TOKENS, PromptChunk, VerificationStep, fill_cache, repeated
from planner.profile.target import MeasuredTarget
from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome

_REPEATS = 4  # drafts of one subject in one round

Report = Callable[[str, float], None]


def longest_request(tokens: int, context: int) -> int:
    """Tokens that there must be room for in each request while steps with `tokens` are measured behind a context."""
    return context + max(tokens + 2 * _REPEATS, MOST_TOKENS)


class Drafting:
    """Requests of a batch that have read their contexts, and what a draft for all of them costs.

    Args:
        runner: the target, whose cache holds the contexts; lent to a speculator that drafts with it.
        speculator: what drafts.
        blocks: cache blocks of each request.
        batch: requests.
        context: tokens of each.
    """

    def __init__(
        self, runner: CompiledRunner, speculator: Speculator, blocks: int, batch: int, context: int
    ) -> None:
        self._speculator, self._batch, self._blocks = speculator, batch, blocks
        self._context = context
        self._random = np.random.default_rng(0)
        self._width = runner.manifest.hidden_size
        self._rows: dict[int, int] = {}
        if speculator.requirements.drafts_with_target:
            speculator.bind(MeasuredTarget(runner, blocks, self._rows))

    def start(self) -> None:
        """Begin the requests and read their prompts."""
        self._begin(read=0)
        self._propose(1)

    def _begin(self, read: int) -> None:
        """Start each request with the first `read` rows of its prompt in place, and give the states of the others."""
        for request in range(self._batch):
            rows = DrafterRows(range(request * self._blocks, (request + 1) * self._blocks), read)
            self._rows[request] = self._context
            self._speculator.start(request, [7 + row % 50 for row in range(self._context)], rows)
            self._speculator.observe(request, self._outcome([7], self._context - read))
        while any(self._speculator.catch_up(range(self._batch), self._context)):
            pass

    def finish(self) -> None:
        """End them."""
        for request in range(self._batch):
            self._speculator.finish(request)

    def milliseconds(self, nodes: int) -> float:
        """Median of a draft of `nodes` nodes for each request, behind its prompt."""
        self.finish()
        self._begin(read=self._context - 1)
        return repeated(lambda: self._propose(nodes), _REPEATS)

    def _propose(self, nodes: int) -> float:
        started = time.perf_counter()
        trees = self._speculator.propose(range(self._batch), [nodes] * self._batch)
        elapsed = (time.perf_counter() - started) * 1e3
        for request, tree in enumerate(trees):
            emitted = [*tree.tokens[:1], 9]  # one accepted token and the target's own
            self._rows[request] += len(emitted)
            self._speculator.observe(request, self._outcome(emitted, len(emitted)))
        return elapsed

    def _outcome(self, emitted: Sequence[int], rows: int) -> StepOutcome:
        layers, shape = self._speculator.requirements.hidden_layers, (rows, self._width)
        hidden = {layer: self._random.standard_normal(shape, np.float32) for layer in layers}
        return StepOutcome(emitted, kept=range(rows), hidden=hidden)


@contextmanager
def _drafting(
    runner: CompiledRunner, speculator: Speculator, blocks: int, batch: int, context: int
) -> Iterator[Drafting]:
    requests = Drafting(runner, speculator, blocks, batch, context)
    requests.start()
    try:
        yield requests
    finally:
        requests.finish()


def measure_costs(
    runner: CompiledRunner,
    speculator: Speculator,
    *,
    contexts: Sequence[int],
    batches: Sequence[int],
    tokens: Sequence[int],
    longest_draft: int,
    chunks: Sequence[int],
    rounds: int,
    report: Report = lambda line, share: None,
) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds a step, raw, one figure a round.

    Drafts of all lengths are measured behind the same prompts, which are read once a round: that takes longer than
    all drafts.

    Args:
        runner: the target; its cache must hold the largest batch.
        speculator: what drafts; no request of its own may be running, and it is left bound to what is measured.
        contexts: tokens of each request that stand before.
        batches: requests of a step.
        tokens: of verification, tokens of a request in a step; one less are drafted.
        longest_draft: most nodes of a draft; those beyond what the speculator drafts are others', and cost nothing.
        chunks: prompt tokens that one request reads in a step: at the beginning, and up to each context.
        rounds: how often each is measured; one more round warms up.
        report: gets what is measured, and the share of all that is done.

    Returns:
        `verify` and `draft`: `context`, `batch`, `tokens` (of drafts: nodes) and `ms`; `read`: the same of chunks, with
        as much context as was read before.
    """
    most, longest = longest_draft, max(contexts)
    nodes = sorted({min(count, most) for count in (1, *(value - 1 for value in tokens)) if count > 0})
    drafts = nodes if most else []
    blocks = -(-longest_request(max(tokens), longest) // runner.block_size)
    verify = {
        (context, batch, count): VerificationStep(runner, batch, count, context, longest)
        for context in contexts
        for batch in batches
        for count in tokens
    }
    sizes = {min(chunk, longest) for chunk in chunks}
    read = {
        (past, 1, size): PromptChunk(runner, size, past, longest)
        for size in sizes
        for past in sorted({0, *(context - size for context in contexts if context > size)})
    }
    figures: dict[tuple[str, int, int, int], list[float]] = {
        **{("verify", *key): [] for key in verify},
        **{
            ("draft", context, batch, count): []
            for context in contexts
            for batch in batches
            for count in drafts
        },
        **{("read", *key): [] for key in read},
    }
    # What is still to come is weighed by the tokens that pass through: a batch of 16 takes longer than one of 1.
    whole, done = (rounds + 1) * sum(batches) * len(contexts), 0
    fill_cache(runner, range(max(batches)), longest)
    for number in range(rounds + 1):
        title = "warming up" if number == 0 else f"round {number} of {rounds}"
        found = {("read", *key): subject() for key, subject in read.items()}
        for context in contexts:
            for batch in batches:
                report(f"costs: {title}, context {context}, batch {batch}", done / whole)
                found |= {
                    ("verify", context, batch, count): verify[context, batch, count]() for count in tokens
                }
                if drafts:
                    with _drafting(runner, speculator, blocks, batch, context) as requests:
                        found |= {
                            ("draft", context, batch, count): requests.milliseconds(count) for count in drafts
                        }
                done += batch
        for key, value in found.items() if number else ():
            figures[key].append(round(value, 4))
    return {
        kind: [
            {"context": context, "batch": batch, "tokens": count, "ms": row}
            for (name, context, batch, count), row in figures.items()
            if name == kind
        ]
        for kind in ("verify", "draft", "read")
    }
