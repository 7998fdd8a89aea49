"""The figures of each combination, and as a table for each context that takes no more than 100 columns."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from planner.bench.windows.records import WindowRecord
from planner.bench.windows.speed import PLAIN, Speed
from planner.profile.acceptance import Figure, ratio


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination behind one context, over all documents.

    Attributes:
        share: accepted of drafted tokens.
        length: tokens of a step: those accepted and the target's own. Of both the interval is a bootstrap over
            documents.
        by_position: share of all drafts that were accepted so deep, from depth 1.
        drafts: how many; each is a step.
        equal: answers that are plain decoding's, of `documents`.
    """

    context: int
    window: int
    choice: str
    documents: int
    share: Figure
    length: Figure
    by_position: Sequence[Figure]
    drafts: int
    equal: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def cells_of(records: Sequence[WindowRecord], draft_length: int) -> list[Cell]:
    """A cell for each combination that there are records of, in their order."""
    groups: dict[tuple[int, int, str], list[WindowRecord]] = {}
    for record in records:
        groups.setdefault((record.context, record.window, record.choice), []).append(record)
    return [_cell(*key, group, draft_length) for key, group in groups.items()]


def _cell(context: int, window: int, choice: str, records: Sequence[WindowRecord], draft_length: int) -> Cell:
    drafts = [len(record.accepted) for record in records]
    accepted = [sum(record.accepted) for record in records]
    return Cell(
        context=context,
        window=window,
        choice=choice,
        documents=len(records),
        share=ratio(accepted, [count * draft_length for count in drafts]),
        length=ratio([tokens + count for tokens, count in zip(accepted, drafts, strict=True)], drafts),
        by_position=[
            ratio([sum(tokens > depth for tokens in record.accepted) for record in records], drafts)
            for depth in range(draft_length)
        ],
        drafts=sum(drafts),
        equal=sum(record.equal for record in records),
    )


def heading(cells: Sequence[Cell]) -> str:
    """What the cells of one context have in common."""
    documents = max(cell.documents for cell in cells)
    return f"{cells[0].context} tokens of context, {documents} document{'s' * (documents > 1)}"


def window_table(cells: Sequence[Cell]) -> Table:
    """The cells of one context: a row a window, a column a choice."""
    by = {(cell.window, cell.choice): cell for cell in cells}
    table = Table("rows read", header_style="bold", show_lines=True)
    choices = list(dict.fromkeys(cell.choice for cell in cells))
    for choice in choices:
        table.add_column(choice, justify="right", no_wrap=True)
    for window in sorted({cell.window for cell in cells}):
        found = (by.get((window, choice)) for choice in choices)
        table.add_row(str(window), *("" if cell is None else _told(cell) for cell in found))
    return table


def _told(cell: Cell) -> str:
    share, length = cell.share, cell.length
    if share.value is None or length.value is None:
        return "nothing drafted"
    interval = "" if share.low is None else f"{share.low:.2f} to {share.high:.2f}, "
    differing = "" if cell.equal == cell.documents else f"\n{cell.documents - cell.equal} answers differ"
    return f"{share.value:.2f}, {length.value:.2f}\n{interval}{cell.drafts} steps{differing}"


def speed_table(speeds: Sequence[Speed]) -> Table:
    """The arms of one context: tokens a second by requests at once, to plain decoding, and tokens of a step."""
    table = Table("drafts", header_style="bold", show_lines=True)
    sizes = list(dict.fromkeys(speed.batch for speed in speeds))
    for size in sizes:
        table.add_column(f"{size} at once", justify="right", no_wrap=True)
    by = {(speed.arm, speed.batch): speed for speed in speeds}
    for arm in dict.fromkeys(speed.arm for speed in speeds):
        table.add_row(arm, *(_timed(by[arm, size]) for size in sizes))
    return table


def _timed(speed: Speed) -> str:
    rate = f"{statistics.median(speed.rates):.1f}/s"
    if speed.arm == PLAIN:
        return rate
    differing = "" if speed.equal else ", answers differ"
    scatter = f"{min(speed.ratios):.2f} to {max(speed.ratios):.2f}"
    return f"{speed.ratio:.2f} ({scatter})\n{rate}, {speed.tokens_a_step:.2f} a step{differing}"


def legend(cells: Sequence[Cell]) -> str:
    """What stands in the tables, and whether all answers are right."""
    equal, compared = sum(cell.equal for cell in cells), sum(cell.documents for cell in cells)
    return (
        "accepted of drafted, tokens a step; below, 95 % of the former over documents, and steps\n"
        f"answers that are plain decoding's: {equal} of {compared}"
    )
