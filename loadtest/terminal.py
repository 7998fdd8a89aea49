"""What a terminal shows of a sweep: progress while it runs, then its results in tables, no wider than 80 columns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from loadtest.measures import measure
from loadtest.plan import plan_cells
from loadtest.records import RequestRecord
from loadtest.schema import Distribution, PointReport, Report, SpeedUp
from loadtest.settings import SweepSettings
from loadtest.summary import distributions
from loadtest.sweep import News

_HEADINGS = ("tokens/s", "speed-up, 95 %", "TTFT ms", "TPOT ms", "accepted", "failed")


class Progress:
    """A callable for :func:`loadtest.sweep.run_sweep`'s `on_news`: in a terminal one bar over all requests, elsewhere a
    line for each cell that ends.

    with Progress(settings, Console(stderr=True)) as progress:
        run_sweep(settings, path, progress)
    """

    def __init__(self, settings: SweepSettings, console: Console) -> None:
        cells = plan_cells(settings)
        self._requests_before = {
            cell.name: sum(each.requests for each in cells[: cell.number]) for cell in cells
        }
        self._cells = len(cells)
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests"),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self._bars.add_task("asking who serves", total=sum(cell.requests for cell in cells))
        self._warned: set[str] = set()
        self._begun, self._measured = time.monotonic(), ""

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bars.stop()
        elif error is None:
            self._ended()

    def __call__(self, news: News) -> None:
        """Take notice of one piece of news."""
        if news["event"] == "warning" and news["text"] not in self._warned:
            self._warned.add(news["text"])
            self._console.print(f"[yellow]warning[/]: {news['text']}", highlight=False)
        elif news["event"] == "cell":
            description = f"cell {news['number'] + 1} of {self._cells}: {news['cell'].split('-', 1)[1]}"
            self._ended()
            self._measured = description
            self._bars.update(
                self._bar, description=description, completed=self._requests_before[news["cell"]]
            )
        elif news["event"] == "reading":
            read = f"reading its prompts, {news['done']} of {news['of']}"
            self._bars.update(self._bar, description=f"{news['cell'].split('-', 1)[1]}: {read}")
        elif news["event"] == "draining":
            waits = "waiting for the server to come to rest"
            self._bars.update(self._bar, description=f"{news['cell'].split('-', 1)[1]}: {waits}")
        elif news["event"] == "request":
            self._bars.update(self._bar, completed=self._requests_before[news["cell"]] + news["done"])

    def _ended(self) -> None:
        """The cell that was measured has ended; a terminal has seen it."""
        if self._measured and not self._console.is_terminal:
            seconds = time.monotonic() - self._begun
            self._console.print(
                f"{self._measured}, finished after {seconds:.0f} s",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        self._measured = ""


def result_table(report: Report) -> Table:
    """One row for each load point and arm; latencies are medians."""
    table = Table(title=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), box=None)
    table.add_column("load")
    table.add_column("arm", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    speedups = {(each.load, each.arm): each for each in report.speedups}
    previous = None
    for point in report.points:
        if previous not in (None, point.load):
            table.add_section()
        previous = point.load
        table.add_row(*_row(point, speedups.get((point.load, point.arm))))
    return table


def latency_table(records: Sequence[RequestRecord]) -> Table:
    """Percentiles of each kind of latency over some requests, in milliseconds."""
    completed = [measure(record) for record in records if record.completed]
    failed = sum(record.failed for record in records)
    table = Table(title=f"{len(completed)} requests completed, {failed} failed", header_style="bold")
    for heading in ("milliseconds", "mean", "p50", "p90", "p99"):
        table.add_column(heading, justify="left" if heading == "milliseconds" else "right")
    for name, found in distributions(completed).items():
        if found:
            table.add_row(name, *(f"{value:.2f}" for value in (found.mean, found.p50, found.p90, found.p99)))
    return table


def _row(point: PointReport, speedup: SpeedUp | None) -> list[str]:
    failures = f"{point.failures}/{point.requests}"
    return [
        point.load,
        point.arm,
        _number(point.output_tokens_per_second, ".1f"),
        _speed_up(speedup) if speedup else "",
        _median(point.ttft, ".0f"),
        _median(point.tpot, ".1f"),
        _number(point.acceptance_length, ".2f"),
        f"[bold red]{failures}[/]" if point.failures else failures,
    ]


def _speed_up(speedup: SpeedUp) -> str:
    if speedup.low is None or speedup.high is None:
        return "not shown (1 round)"
    interval = f"({speedup.low:.2f} to {speedup.high:.2f})"
    return f"not shown {interval}" if speedup.verdict == "not shown" else f"{speedup.value:.2f} {interval}"


def _median(distribution: Distribution | None, form: str) -> str:
    return f"{distribution.p50:{form}}" if distribution else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
