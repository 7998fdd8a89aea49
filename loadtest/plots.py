"""The figures of a report.

Each function in :data:`PLOTS` draws one figure from a :class:`loadtest.schema.Report`, or None where there is
nothing to draw; :func:`draw` gives it a theme's colours and makes it a PNG. Matplotlib is used without
pyplot, which needs no display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loadtest.schema import Distribution, PointReport, Ratio, Report


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of a figure."""

    background: str
    text: str
    grid: str
    baseline: str
    arms: tuple[str, ...]

    def colour(self, report: Report, arm: str) -> str:
        """The colour of an arm: grey for the baseline, then one after the other."""
        others = [entry.arm for entry in report.arms if entry.arm != report.baseline]
        return self.baseline if arm == report.baseline else self.arms[others.index(arm) % len(self.arms)]

    def settings(self) -> dict[Any, Any]:
        """Matplotlib's settings for it."""
        coloured = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
        faces = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
        return {
            **dict.fromkeys(coloured, self.text),
            **dict.fromkeys(faces, self.background),
            "axes.edgecolor": self.grid,
            "grid.color": self.grid,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
            "font.size": 9.5,
            "lines.markersize": 5,
        }


LIGHT = Theme(
    "#ffffff", "#1f2933", "#e1e5ea", "#7b8794", ("#2563c9", "#c2570c", "#0f8a6a", "#8e44c7", "#b8325e")
)
DARK = Theme(
    "#161b22", "#d6dde6", "#303843", "#8b98a8", ("#6ea8fe", "#f5a05a", "#4fd1a5", "#c79bf2", "#f28ba8")
)

Plot = Callable[[Report, Theme], "Figure | None"]

_SIZE = (7.2, 3.6)
_DPI = 144
_ASIDE = 1.04  # arms at one load, so that their intervals do not hide one another
_STYLES = (("p50", "-"), ("p90", "--"), ("p99", ":"))
_LATENCIES = (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("latency", "request latency"))


def throughput(report: Report, theme: Theme) -> Figure | None:
    """Output tokens per second by concurrency: all rounds together as a line, single rounds as dots."""
    figure, axes = _figure()
    points = [point for point in report.points if point.kind == "closed" and point.output_tokens_per_second]
    if not points:
        return None
    for arm in _arms(points):
        mine = [point for point in points if point.arm == arm]
        colour = theme.colour(report, arm)
        levels = [point.level for point in mine]
        axes.plot(
            levels, [point.output_tokens_per_second or 0.0 for point in mine], "-o", color=colour, label=arm
        )
        for point in mine:
            rounds = point.output_tokens_per_second_by_round
            axes.plot([point.level] * len(rounds), rounds, "o", color=colour, alpha=0.35, markersize=3.5)
    _log_levels(axes, [point.level for point in points], "users (closed loop)")
    _finish(axes, "output tokens / s")
    _from_zero(axes)
    return figure


def speedup(report: Report, theme: Theme) -> Figure | None:
    """Speed-up by concurrency with its interval, single rounds, and the acceptance length as ceiling.

    What is not shown to differ from 1 is drawn hollow.
    """
    figure, axes = _figure()
    points = report.speedups
    if not points:
        return None
    for number, arm in enumerate(dict.fromkeys(point.arm for point in points)):
        mine = [point for point in points if point.arm == arm]
        colour = theme.colour(report, arm)
        levels = [point.level * _ASIDE**number for point in mine]
        axes.plot(levels, [point.value for point in mine], "-", color=colour, lw=1.2, label=arm)
        for level, point in zip(levels, mine, strict=True):
            _with_interval(axes, level, point, colour, theme)
        if all(point.ceiling is not None for point in mine):
            ceilings = [point.ceiling or 0.0 for point in mine]
            axes.plot(
                levels, ceilings, "--_", color=colour, lw=1.2, label=f"{arm}: acceptance length (ceiling)"
            )
        for level, point in zip(levels, mine, strict=True):
            axes.plot([level] * len(point.by_round), point.by_round, "o", color=colour, alpha=0.35, ms=3.5)
    axes.axhline(1.0, color=theme.baseline, lw=1.2)
    _log_levels(axes, [point.level for point in points], "users (closed loop)")
    _finish(axes, f"speed-up over {report.baseline}")
    # Of an interval that says little the ends may lie far out; what was measured is to be seen.
    axes.set_ylim(0, 1.15 * max(max(1.0, point.ceiling or 0.0, *point.by_round) for point in points))
    return figure


def latency_closed(report: Report, theme: Theme) -> Figure | None:
    """Latency percentiles by concurrency."""
    return _latency(report, theme, "closed", "users (closed loop)")


def latency_open(report: Report, theme: Theme) -> Figure | None:
    """Latency percentiles by arrival rate."""
    return _latency(report, theme, "open", "arrivals / s (open loop)")


def _latency(report: Report, theme: Theme, kind: str, label: str) -> Figure | None:
    points = [point for point in report.points if point.kind == kind and point.latency]
    if not points:
        return None
    figure = Figure(figsize=(_SIZE[0], 6.2), layout="constrained")
    for place, (name, title) in enumerate(_LATENCIES, start=1):
        axes = figure.add_subplot(2, 2, place)
        for arm in _arms(points):
            mine = [point for point in points if point.arm == arm and getattr(point, name)]
            _percentiles(axes, mine, name, theme.colour(report, arm))
        _log_levels(axes, [point.level for point in points], label)
        _finish(axes, f"{title}, ms", legend=False)
        _from_zero(axes)
        if place == 1:
            axes.legend(handles=_latency_legend(report, theme, _arms(points)), fontsize=8.5)
    return figure


def _latency_legend(report: Report, theme: Theme, arms: Sequence[str]) -> list[Line2D]:
    """Colours tell the arms apart, line styles the percentiles."""
    colours = [Line2D([], [], color=theme.colour(report, arm), marker="o", ms=4, label=arm) for arm in arms]
    return colours + [
        Line2D([], [], color=theme.text, ls=style, lw=1.2, label=name) for name, style in _STYLES
    ]


def _percentiles(axes: Axes, points: Sequence[PointReport], name: str, colour: str) -> None:
    found: list[tuple[float, Distribution]] = [(point.level, getattr(point, name)) for point in points]
    levels = [level for level, _ in found]
    for percentile, style in _STYLES:
        values = [getattr(each, percentile) for _, each in found]
        axes.plot(levels, values, ls=style, color=colour, lw=1.2, marker="o" if style == "-" else "", ms=4)


def categories(report: Report, theme: Theme) -> Figure | None:
    """Acceptance length and speed-up by kind of prompt, side by side."""
    entries = [
        entry for entry in report.categories if entry.arm != report.baseline and entry.acceptance_length
    ]
    if not entries:
        return None
    names, arms = (
        list(dict.fromkeys(e.category for e in entries)),
        list(dict.fromkeys(e.arm for e in entries)),
    )
    figure = Figure(
        figsize=(_SIZE[0], 1.3 + 0.34 * len(names) * max(1, len(arms) * 0.7)), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(arms)
    right.axvline(1.0, color=theme.baseline, lw=1.2)
    for number, arm in enumerate(arms):
        mine = {entry.category: entry for entry in entries if entry.arm == arm}
        rows = [row + (number - (len(arms) - 1) / 2) * height for row in range(len(names))]
        colour = theme.colour(report, arm)
        found = [mine.get(name) for name in names]
        _bars(
            left, rows, [entry.acceptance_length if entry else None for entry in found], height, colour, arm
        )
        for row, entry in zip(rows, found, strict=True):
            if entry is not None and entry.speedup is not None:
                _with_interval(right, row, entry.speedup, colour, theme, upright=False)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlabel("acceptance length, tokens / step")
    right.set_xlabel(f"speed-up at {report.lowest_load or 'the lowest load'}")
    _finish(left, "", legend=False, grid="x")
    _finish(right, "", legend=False, grid="x")
    if len(arms) > 1:
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside upper center", ncols=len(arms), fontsize=8.5
        )
    return figure


def _with_interval(
    axes: Axes, place: float, ratio: Ratio, colour: str, theme: Theme, *, upright: bool = True
) -> None:
    """A ratio as a dot, hollow where it shows no difference, with its interval as a bar."""
    face = theme.background if ratio.verdict == "not shown" else colour
    x, y = ([place], [ratio.value]) if upright else ([ratio.value], [place])
    axes.plot(x, y, "o", color=colour, markerfacecolor=face, zorder=3)
    if ratio.low is None or ratio.high is None:
        return
    draw_bar = axes.vlines if upright else axes.hlines
    draw_bar(place, ratio.low, ratio.high, color=colour, lw=1.4)


def _bars(
    axes: Axes, rows: Sequence[float], values: Sequence[float | None], height: float, colour: str, arm: str
) -> None:
    widths = [value or 0.0 for value in values]
    bars = axes.barh(rows, widths, height=height * 0.9, color=colour, label=arm)
    axes.bar_label(bars, ["" if value is None else f"{value:.2f}" for value in values], padding=3, fontsize=8)
    axes.margins(x=0.14)


def positions(report: Report, theme: Theme) -> Figure | None:
    """Share of drafted tokens that were accepted, by position in the draft."""
    figure, axes = _figure()
    if not report.positions:
        return None
    for arm in dict.fromkeys(entry.arm for entry in report.positions):
        mine = [entry for entry in report.positions if entry.arm == arm]
        axes.plot(
            [entry.position for entry in mine],
            [entry.rate for entry in mine],
            "-o",
            color=theme.colour(report, arm),
            label=arm,
        )
    axes.set_xlabel("position in the draft")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1)
    _finish(axes, "accepted / drafted")
    return figure


def failures(report: Report, theme: Theme) -> Figure | None:
    """Share of measured requests that failed, by load; None if none did."""
    figure, axes = _figure()
    if not any(point.failures for point in report.points):
        return None
    loads, arms = list(dict.fromkeys(point.load for point in report.points)), _arms(report.points)
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        mine = {point.load: point for point in report.points if point.arm == arm}
        places = [place + (number - (len(arms) - 1) / 2) * width for place in range(len(loads))]
        shares = [100 * mine[load].failures / mine[load].requests if load in mine else 0.0 for load in loads]
        axes.bar(places, shares, width=width * 0.9, color=theme.colour(report, arm), label=arm)
    axes.set_xticks(range(len(loads)), loads)
    _finish(axes, "failed requests, %")
    return figure


PLOTS: dict[str, Plot] = {
    "throughput": throughput,
    "speedup": speedup,
    "latency-closed": latency_closed,
    "latency-open": latency_open,
    "acceptance-by-category": categories,
    "acceptance-by-position": positions,
    "failures": failures,
}
"""Every figure by its file name, in the order of the report."""


def draw(plot: Plot, report: Report, theme: Theme) -> bytes | None:
    """One figure as a PNG; None where there is nothing to draw."""
    with matplotlib.rc_context(theme.settings()):
        figure = plot(report, theme)
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
        return buffer.getvalue()


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE, layout="constrained")
    return figure, figure.add_subplot()


def _arms(points: Sequence[PointReport]) -> list[str]:
    return list(dict.fromkeys(point.arm for point in points))


def _log_levels(axes: Axes, levels: Sequence[float], label: str) -> None:
    """A logarithmic axis with a tick at each load point and nowhere else."""
    ticks = sorted(set(levels))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(label)


def _from_zero(axes: Axes) -> None:
    """An axis from 0 to a little above everything, however close together that lies."""
    highest = axes.dataLim.y1
    if math.isfinite(highest):  # else nothing was drawn, as of the time between tokens where answers have one
        axes.set_ylim(0, 1.08 * highest)


def _finish(axes: Axes, label: str, legend: bool = True, grid: Literal["x", "y"] = "y") -> None:
    axes.set_ylabel(label)
    axes.grid(False, axis="x" if grid == "y" else "y")
    if legend:
        axes.legend(fontsize=8.5)
