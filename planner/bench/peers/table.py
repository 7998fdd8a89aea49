"""The comparison for the terminal."""

from collections.abc import Sequence

from rich.table import Table

from planner.bench.peers.arms import BASE
from planner.bench.peers.summary import ArmSummary, best_of_each

_FIGURES = (
    *("tokens/s", "with prompt", "speed-up (95 %)", "to our plain", "acceptance length", "equal to plain"),
)


def peers_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row an arm; each engine's fastest is set in bold. The speed is that of decoding, after the first token."""
    table = Table(header_style="bold")
    for heading in ("engine", "speculation"):
        table.add_column(heading, no_wrap=True)
    for heading in _FIGURES:
        table.add_column(heading, justify="right")
    best = best_of_each(summaries)
    for number, item in enumerate(summaries):
        if number and summaries[number - 1].engine != item.engine:
            table.add_section()
        interval = f" ({item.interval[0]:.2f} to {item.interval[1]:.2f})" if item.interval else ""
        length = "not told" if item.acceptance_length is None else f"{item.acceptance_length:.2f}"
        table.add_row(
            item.engine,
            item.method,
            f"{item.decode_rate:.1f}",
            f"{item.whole_rate:.1f}",
            f"{item.speedup:.2f}{interval}",
            f"{item.to_ours:.2f}",
            length,
            f"{item.equal} of {item.compared}",
            style="bold" if item in best else None,
        )
    return table


def category_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row a category: the speed-up of each way of speculating over the same engine's plain decoding."""
    arms = [item for item in summaries if item.method != BASE]
    table = Table("speed-up", header_style="bold")
    for item in arms:
        table.add_column(f"{item.engine} {item.method}", justify="right")
    for category in sorted({name for item in arms for name in item.by_category}):
        table.add_row(category, *(f"{item.by_category[category]:.2f}" for item in arms))
    return table


def position_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row for each arm that tells its acceptance by position: the share with its interval, and of how many."""
    arms = [item for item in summaries if item.by_position]
    table = Table("accepted at position", header_style="bold")
    for depth in range(max((len(item.by_position) for item in arms), default=0)):
        table.add_column(str(depth + 1), justify="right")
    for item in arms:
        cells = []
        for figure in item.by_position:
            bounds = "" if figure.low is None else f" ({figure.low:.2f} to {figure.high:.2f})"
            share = "none" if figure.value is None else f"{figure.value:.3f}{bounds}"
            cells.append(f"{share} of {figure.count}")
        table.add_row(f"{item.engine} {item.method}", *cells)
    return table
