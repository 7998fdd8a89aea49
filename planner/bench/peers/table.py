"""The comparison for the terminal, no wider than 80 columns."""

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from planner.bench.peers.beside import BASE
from planner.bench.peers.summary import ArmSummary, best_of_each
from planner.profile.acceptance import Figure

_FIGURES = ("tokens\n/s", "speed-up, 95 %", "to\nours", "accepted", "ms a\ndraft\ntoken", "equal")


def peers_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row an arm, numbered; each engine's fastest is set in bold.

    The speed is that of decoding, after the first tokens; `speed-up` is over the engine's own plain decoding, `to ours`
    over this engine's; `accepted` is the acceptance length, `ms a draft token` what drafting takes, where it is told,
    `equal` counts answers that are those of plain decoding.
    """
    table = Table("", "arm", header_style="bold", box=None, padding=(0, 1, 0, 0))
    for heading in _FIGURES:
        table.add_column(heading, justify="right", no_wrap=True)
    best = best_of_each(summaries)
    for number, item in enumerate(summaries):
        if not number or summaries[number - 1].engine != item.engine:
            table.add_row("", f"[bold]{item.engine}[/]")
        interval = f" ({item.interval[0]:.2f} to {item.interval[1]:.2f})" if item.interval else ""
        length = "not told" if item.acceptance_length is None else f"{item.acceptance_length:.2f}"
        table.add_row(
            str(number + 1),
            item.method,
            f"{item.decode_rate:.1f}",
            f"{item.speedup:.2f}{interval}",
            f"{item.to_ours:.2f}",
            length,
            "" if item.draft_ms is None else f"{item.draft_ms:.2f}",
            f"{item.equal}/{item.compared}",
            style="bold" if item in best else None,
        )
    return table


def category_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row a category: the speed-up of each way of speculating over its engine's plain decoding, by number."""
    return _by_category("speed-up\nof arm", summaries, lambda item: item.by_category)


def acceptance_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row a category: the acceptance length of each way of speculating, by number; empty where it is not told."""
    return _by_category("acceptance\nlength of arm", summaries, lambda item: item.acceptance_by_category)


def _by_category(
    title: str, summaries: Sequence[ArmSummary], figures: Callable[[ArmSummary], Mapping[str, float | None]]
) -> Table:
    arms = {number: figures(item) for number, item in enumerate(summaries, 1) if item.method != BASE}
    table = Table(title, header_style="bold", box=None, padding=(0, 1, 0, 0))
    for number in arms:
        table.add_column(str(number), justify="right", no_wrap=True)
    for category in sorted({name for found in arms.values() for name in found}):
        table.add_row(category, *(_in_four(found[category]) for found in arms.values()))
    return table


def _in_four(figure: float | None) -> str:
    """Of no more than four characters up to 99.9, so that 13 arms find room."""
    return "" if figure is None else f"{figure:.2f}" if figure < 9.995 else f"{figure:.1f}"


def position_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row a position of the draft, one column an arm that tells: the share accepted so deep, and of how many."""
    arms = [item for item in summaries if item.by_position]
    table = Table("accepted at", header_style="bold", box=None, padding=(0, 1, 0, 0))
    for item in arms:
        table.add_column(f"{item.engine} {item.method}", justify="right", no_wrap=True)
    for depth in range(max((len(item.by_position) for item in arms), default=0)):
        cells = (_share(item.by_position[depth]) if depth < len(item.by_position) else "" for item in arms)
        table.add_row(str(depth + 1), *cells)
    return table


def _share(figure: Figure) -> str:
    bounds = "" if figure.low is None else f" ({figure.low:.2f} to {figure.high:.2f})"
    share = "none" if figure.value is None else f"{figure.value:.3f}{bounds}"
    return f"{share} of {figure.count}"
