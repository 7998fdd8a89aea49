"""The profile as one picture: acceptance by category, position and rank, and what steps cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_WIDTH = 0.8  # of all bars of a group


def plot_profile(profile: Mapping[str, Any], path: Path) -> None:
    """Write a PNG.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(12, 8), layout="constrained")
    (categories, positions), (ranks, costs) = figure.subplots(2, 2)
    figure.suptitle(
        f"{profile['deployment']}: {profile['speculation']['method']}, {profile['prompts']} prompts"
    )
    _categories(categories, profile["acceptance"])
    for axes, key, label in (
        (positions, "by_position", "position in the draft"),
        (ranks, "by_rank", "rank among siblings"),
    ):
        _curves(axes, profile["acceptance"], key, label)
    _costs(costs, profile["cost"])
    figure.savefig(path, dpi=120, format="png")


def _categories(axes: Axes, acceptance: Mapping[str, Any]) -> None:
    names = sorted({name for figures in acceptance.values() for name in figures["by_category"]})
    width = _WIDTH / max(1, len(acceptance))
    for shift, (temperature, figures) in enumerate(acceptance.items()):
        every = [("all", figures), *((name, figures["by_category"].get(name)) for name in names)]
        found = [(place, item["acceptance_length"]) for place, (_, item) in enumerate(every) if item]
        shown = [(place, item) for place, item in found if item["value"] is not None]
        values = [item["value"] for _, item in shown]
        axes.bar(
            [place + shift * width for place, _ in shown],
            values,
            width,
            yerr=_errors([item for _, item in shown]),
            capsize=2,
            label=f"temperature {temperature}",
        )
    axes.set_xticks(range(len(names) + 1), ["all", *names], rotation=40, ha="right")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("acceptance length (tokens per step)")
    axes.legend()


def _curves(axes: Axes, acceptance: Mapping[str, Any], key: str, label: str) -> None:
    for temperature, figures in acceptance.items():
        items = figures[key]
        axes.errorbar(
            range(1, len(items) + 1),
            [item["value"] for item in items],
            yerr=_errors(items),
            marker="o",
            capsize=2,
            label=f"temperature {temperature}",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(label)
    axes.set_ylabel("share accepted")
    axes.set_ylim(0, 1)
    axes.legend()


def _costs(axes: Axes, cost: Mapping[str, Any]) -> None:
    shortest = min((row["context"] for row in cost.get("verify", [])), default=0)
    for kind, style in (("verify", "-"), ("draft", "--")):
        rows = [row for row in cost.get(kind, []) if row["context"] == shortest]
        for batch in sorted({row["batch"] for row in rows}):
            points = sorted(
                (row["tokens"], statistics.median(row["ms"])) for row in rows if row["batch"] == batch
            )
            axes.plot(*zip(*points, strict=True), style, marker=".", label=f"{kind}, batch {batch}")
    axes.set_xlabel(f"tokens of a request in a step, context {shortest}")
    axes.set_ylabel("milliseconds (median)")
    if cost:
        axes.legend(ncols=2, fontsize="small")


def _errors(items: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Lengths of the bars below and above each value; none where there is no interval."""
    known = [
        item if item["low"] is not None else {**item, "low": item["value"], "high": item["value"]}
        for item in items
    ]
    return [
        [max(0.0, item["value"] - item["low"]) for item in known],
        [max(0.0, item["high"] - item["value"]) for item in known],
    ]
