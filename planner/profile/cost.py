"""What drafting, verification and reading cost: milliseconds by context, batch and tokens, alternating in rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine.compiled_runner import CompiledRunner
from engine.control.drafts import MeasuredDrafts
from planner.bench.measure import MOST_TOKENS, PromptChunk, VerificationStep, fill_cache, repeated
from speculators.base import Speculator

_REPEATS = 4  # drafts of one subject in one round

Report = Callable[[str, float], None]


def longest_request(tokens: int, context: int) -> int:
    """Tokens that there must be room for in each request while steps with `tokens` are measured behind a context."""
    return context + max(tokens + 2 * _REPEATS, MOST_TOKENS)


@contextmanager
def _drafting(
    runner: CompiledRunner, speculator: Speculator, blocks: int, batch: int, context: int
) -> Iterator[Callable[[int], float]]:
    """Requests that have read their prompts; gives the median of a draft of so many nodes for each, behind these."""
    width = runner.manifest.hidden_size
    requests = MeasuredDrafts(runner, speculator, width=width, blocks=blocks, batch=batch, context=context)

    def milliseconds(nodes: int) -> float:
        requests.finish()
        requests.begin(read=context - 1)
        return repeated(lambda: requests.draft(nodes)[0], _REPEATS)

    requests.begin(read=0)
    requests.draft(1)
    try:
        yield milliseconds
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
                    with _drafting(runner, speculator, blocks, batch, context) as milliseconds:
                        found |= {("draft", context, batch, count): milliseconds(count) for count in drafts}
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
