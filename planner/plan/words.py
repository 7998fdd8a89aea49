"""A plan in words and as a table: does it pay, with what, by how much, how sure, and why."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from engine.plan import Candidate, Cell, Estimate, Objective, Outlook, Trees
from planner.plan.choose import ALIKE

_LIMITS = {"ttft_ms": "first token", "tpot_ms": "time per token"}


def named(candidate: Candidate, deployments: Sequence[str] = ()) -> str:
    """A candidate for people; with its deployment where several are compared."""
    if candidate.method == "none":
        return "none"
    name = candidate.deployment if len(deployments) > 1 else candidate.method
    return f"{name}, {'up to ' if candidate.adaptive else ''}{candidate.draft_length}"


def answer(cell: Cell, objective: Objective, deployments: Sequence[str]) -> str:
    """What a person asks first, about one load."""
    plain, best = cell.candidates[0], cell.best
    users = "1 user" if cell.concurrency == 1 else f"{cell.concurrency} users"
    known = f" ({cell.cached_tokens:.0f} of them cached)" if cell.cached_tokens else ""
    load = (
        f"{users}, prompts of {cell.prompt_tokens:.0f} tokens{known} and answers of {cell.output_tokens:.0f}"
    )
    if objective.kind == "goodput" and best.worth <= 0:
        return f"{load}: nothing keeps {_limits(objective)}; without speculation a first token takes " + (
            f"{plain.ttft_ms.value:.0f} ms and each one after it {plain.tpot_ms.value:.1f} ms."
        )
    if best.candidate.method == "none":
        others = [each for each in cell.candidates if each.candidate.method != "none"]
        if not others:
            return f"{load}: nothing was drafted, so there is nothing to choose from."
        near = max(others, key=lambda each: each.worth)
        gains = f"hardly, speculation would gain less than {ALIKE:.0%}"
        verdict = gains if near.worth > best.worth else "no, speculation does not pay"
        return (
            f"{load}: {verdict}. The best of it, {named(near.candidate, deployments)}, would give "
            f"{_interval(near.gain)} times the tokens of none: {_why(near, cell)}."
        )
    sure = "yes" if best.gain.low > 1 else "maybe; this profile cannot tell it from none"
    return (
        f"{load}: {sure}. {named(best.candidate, deployments)} gives {best.tokens_per_second.value:.0f} tokens/s, "
        f"{_interval(best.gain)} times none: {_why(best, cell)}."
    )


def plan_table(cells: Sequence[Cell], deployments: Sequence[str]) -> Table:
    """The best candidate of every cell, no wider than 80 columns where one method was profiled."""
    table = Table(header_style="bold", title="tokens a second, answers of a closed loop, 90 % intervals")
    for heading in ("users", "context", "best", "tokens/s", "x none", "tokens a step", "ms a step"):
        table.add_column(
            heading, justify="left" if heading == "best" else "right", no_wrap=heading != "tokens a step"
        )
    for cell in cells:
        best = cell.best
        table.add_row(
            str(cell.concurrency),
            f"{cell.context:.0f}",
            named(best.candidate, deployments),
            f"{best.tokens_per_second.value:.0f}",
            _interval(best.gain),
            f"{best.tokens_per_step.value:.2f}",
            f"{best.step_ms.value + best.draft_ms.value:.1f}",
        )
    return table


def tree_table(trees: Trees, name: str) -> Table:
    """Nodes and levels of the best tree by context and requests of a step."""
    batches = sorted({size.batch for size in trees.sizes})
    table = Table(
        header_style="bold", title=f"{name}: nodes (levels) of the best tree, by requests of a step"
    )
    table.add_column("context", justify="right")
    for batch in batches:
        table.add_column(str(batch), justify="right", no_wrap=True)
    for context in sorted({size.context for size in trees.sizes}):
        found = {size.batch: size for size in trees.sizes if size.context == context}
        cells = (found[batch] for batch in batches)
        table.add_row(
            str(context), *(f"{size.nodes} ({size.depth})" if size.nodes else "none" for size in cells)
        )
    return table


def _interval(figure: Estimate) -> str:
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"


def _why(outlook: Outlook, cell: Cell) -> str:
    """Numerator and denominator."""
    plain = cell.candidates[0]
    whole, before = outlook.step_ms.value + outlook.draft_ms.value, plain.step_ms.value
    reading = 1 - cell.output_tokens * plain.tpot_ms.value / plain.latency_ms.value
    return (
        f"a decoding step emits {outlook.tokens_per_step.value:.2f} tokens of a request instead of 1 and takes "
        f"{whole:.1f} ms instead of {before:.1f} ({whole / before:.2f} times, {outlook.draft_ms.value:.1f} ms of it "
        f"drafting); {max(0.0, reading):.0%} of a request's time without speculation is before its first token"
    )


def _limits(objective: Objective) -> str:
    given = [
        f"a {name} of {getattr(objective, key):g} ms"
        for key, name in _LIMITS.items()
        if getattr(objective, key) is not None
    ]
    return " and ".join(given)
