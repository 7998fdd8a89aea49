"""Results as tables for the terminal, no wider than 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from loadtest.measures import measure
from loadtest.records import RequestRecord
from loadtest.schema import Distribution, PointReport, Report, SpeedUp
from loadtest.summary import distributions

_HEADINGS = ("tokens/s", "speed-up, 95 %", "TTFT ms", "TPOT ms", "accepted", "failed")


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
