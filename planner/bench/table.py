"""The bench's figures as tables for the terminal."""

from rich.table import Table

from planner.bench.measure import BATCHES, TOKENS, BenchResult

_BASE = "1 token"


def step_table(result: BenchResult) -> Table:
    """Step cost by verified tokens and by batch, as milliseconds and as ratio to a step of one token."""
    table = Table(
        "step",
        "ms (median)",
        "min .. max",
        "ratio to one token",
        "tokens/s of the batch",
        header_style="bold",
    )
    names = [f"{count} token" + "s" * (count > 1) for count in TOKENS] + [
        f"batch {batch}" for batch in BATCHES[1:]
    ]
    for name in names:
        low, high = result.spread(name)
        batch = int(name.split()[1]) if name.startswith("batch") else 1
        throughput = f"{batch * 1e3 / result.median(name):.0f}" if "token" not in name or batch == 1 else ""
        rate = throughput if name.startswith("batch") or name == _BASE else ""
        ratio = f"{result.ratio(name, _BASE):.2f}"
        table.add_row(name, f"{result.median(name):.2f}", f"{low:.2f} .. {high:.2f}", ratio, rate)
    table.add_section()
    bound, bandwidth = result.bound_ms, result.median("bandwidth GB/s")
    share = f"{bound / result.median(_BASE):.0%} of a step"
    table.add_row(
        "memory bound",
        f"{bound:.2f}",
        f"{result.weight_bytes / 1e6:.0f} MB at {bandwidth:.1f} GB/s",
        share,
        "",
    )
    return table


def throughput_table(result: BenchResult) -> Table:
    """Tokens a second, with ratios to the engine at batch 1."""
    base = "engine, batch 1, tokens/s"
    table = Table(
        "tokens a second", "median", "min .. max", "ratio to the engine at batch 1", header_style="bold"
    )
    for name in result.rounds:
        if name.endswith("tokens/s"):
            low, high = result.spread(name)
            label = name.removesuffix(", tokens/s")
            table.add_row(
                label,
                f"{result.median(name):.1f}",
                f"{low:.1f} .. {high:.1f}",
                f"{result.ratio(name, base):.3f}",
            )
    return table
