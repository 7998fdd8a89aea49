"""The figures as tables for the terminal."""

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from planner.bench.cuda.run import ACCEPTANCES, Results, Speedup, StepCost


def show(results: Results) -> None:
    """Print what was measured, and what was not."""
    console = Console()
    whole = [step for step in results.steps if not step.window]
    if whole:
        copied = statistics.median(speed for step in whole for speed in step.copy_gb_s)
        console.print(step_table(whole))
        console.print(
            f"bound: weights and cache read once, at the {copied:.0f} GB/s at which memory is copied"
        )
    if results.speedups:
        console.print(regime_table(results.speedups))
        console.print("milliseconds, and what drafts on a window gain by acceptance of a token (predicted)")
    for each in results.left_out:
        what = ", ".join(f"{name} {value}" for name, value in each.items() if name != "for_want_of")
        console.print(f"not measured for want of {each['for_want_of']}: {what}")


def step_table(steps: Sequence[StepCost]) -> Table:
    """A line for each model, context and batch: a step of one row, its bound, and the ratios of more rows to it."""
    rows = sorted({step.rows for step in steps if step.rows > 1})
    table = Table("model", header_style="bold")
    for heading in ("context", "batch", "ms", "bound", "share", "host ms", *(f"x {count}" for count in rows)):
        table.add_column(heading, justify="right", no_wrap=True)
    by = {(step.model, step.context, step.batch, step.rows): step for step in steps}
    for model, context, batch in dict.fromkeys(key[:3] for key in by):
        one = by[model, context, batch, 1]
        more = (by.get((model, context, batch, count)) for count in rows)
        table.add_row(
            *(model, str(context), str(batch), f"{one.ms:.2f}", f"{one.bound_ms:.2f}"),
            *(f"{one.bound_ms / one.ms:.0%}", f"{statistics.median(one.wall_ms):.2f}"),
            *(f"{_ratio(step, one):.2f}" if step else "" for step in more),
        )
    return table


def _ratio(step: StepCost, one: StepCost) -> float:
    """Median of the rounds' own ratios."""
    return statistics.median(more / base for more, base in zip(step.device_ms, one.device_ms, strict=True))


def regime_table(speedups: Sequence[Speedup]) -> Table:
    """Predicted speed-up by the length of drafts and acceptance."""
    table = Table("drafted", header_style="bold")
    headings = ("plain", "draft", "verify", *(f"{acceptance:.0%}" for acceptance in ACCEPTANCES))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for each in speedups:
        times = (each.plain_ms, each.draft_ms, each.verify_ms)
        table.add_row(
            str(each.draft),
            *(f"{value:.1f}" for value in times),
            *(f"{each.of(acceptance):.2f}" for acceptance in ACCEPTANCES),
        )
    return table
