"""Results as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from loadtest.measures import measure
from loadtest.records import RequestRecord
from loadtest.schema import Distribution, PointReport, Report, SpeedUp
from loadtest.summary import distributions


def result_table(report: Report) -> Table:
    """One row for each load point and arm; latencies in milliseconds, median and 99th percentile."""
    table = Table(title=None, header_style="bold", pad_edge=False)
    table.add_column("load")
    table.add_column("arm")
    for heading in (
        "tokens/s",
        "speed-up",
        "TTFT p50/p99",
        "TPOT p50/p99",
        "latency p50/p99",
        "accepted",
        "failed",
    ):
        table.add_column(heading, justify="right")
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
    return [
        point.load,
        point.arm,
        _number(point.output_tokens_per_second, ".1f"),
        f"{speedup.value:.2f} ({speedup.low:.2f}-{speedup.high:.2f})" if speedup else "",
        _pair(point.ttft, ".0f"),
        _pair(point.tpot, ".1f"),
        _pair(point.latency, ".0f"),
        _number(point.acceptance_length, ".2f"),
        f"[bold red]{point.failures}[/] of {point.requests}" if point.failures else f"0 of {point.requests}",
    ]


def _pair(distribution: Distribution | None, form: str) -> str:
    return f"{distribution.p50:{form}} / {distribution.p99:{form}}" if distribution else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"
