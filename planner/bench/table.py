"""The bench's figures as tables for the terminal, no wider than 80 columns."""

from rich.table import Table

from planner.bench.measure import BATCHES, TOKENS, BenchResult

_BASE = "1 token"


def step_table(result: BenchResult) -> Table:
    """Step cost by verified tokens and by batch, as milliseconds and as ratio to a step of one token."""
    table = Table("step", header_style="bold")
    for heading in ("ms, median", "least to most", "x 1 token", "tokens/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    names = [f"{count} token" + "s" * (count > 1) for count in TOKENS] + [
        f"batch {batch}" for batch in BATCHES[1:]
    ]
    for name in names:
        batch = int(name.split()[1]) if name.startswith("batch") else 1
        rate = f"{batch * 1e3 / result.median(name):.0f}" if name == _BASE or batch > 1 else ""
        ratio = f"{result.ratio(name, _BASE):.2f}"
        table.add_row(name, f"{result.median(name):.2f}", _spread(result, name, ".2f"), ratio, rate)
    bound, bandwidth = result.bound_ms, result.median("bandwidth GB/s")
    table.caption = (
        f"memory bound {bound:.2f} ms, {bound / result.median(_BASE):.0%} of a step of 1 token: "
        f"{result.weight_bytes / 1e6:.0f} MB at {bandwidth:.1f} GB/s"
    )
    return table


def throughput_table(result: BenchResult) -> Table:
    """Tokens a second, with ratios to the engine at batch 1."""
    base = "engine, batch 1, tokens/s"
    table = Table("tokens a second", header_style="bold")
    for heading in ("median", "least to most", "x batch 1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in result.rounds:
        if name.endswith("tokens/s"):
            label, ratio = name.removesuffix(", tokens/s"), f"{result.ratio(name, base):.2f}"
            table.add_row(label, f"{result.median(name):.1f}", _spread(result, name, ".1f"), ratio)
    return table


def _spread(result: BenchResult, name: str, form: str) -> str:
    low, high = result.spread(name)
    return f"{low:{form}} to {high:{form}}"
