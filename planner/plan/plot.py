"""A plan as a picture: what the best candidate gains by concurrency and context, and all of them at one context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from engine.plan import Cell, Plan
from planner.plan.words import named

_LEAST_SPAN = 0.05  # of the colours, where nothing gains


def plot_plan(plan: Plan, context: float, path: Path) -> None:
    """Write a PNG.

    Args:
        plan: what to draw.
        context: whose candidates are drawn as curves.
        path: where.

    Raises:
        OSError: it cannot be written.
    """
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    chart, curves = figure.subplots(1, 2)
    figure.suptitle(f"{plan.deployment}: what speculation gains, as predicted")
    image = _map(chart, plan)
    figure.colorbar(image, ax=chart, label="tokens a second, times none")
    _curves(curves, plan, [cell for cell in plan.cells if cell.context == context])
    figure.savefig(path, dpi=120, format="png")


def _map(axes: Axes, plan: Plan) -> AxesImage:
    contexts = sorted({cell.context for cell in plan.cells})
    levels = sorted({cell.concurrency for cell in plan.cells})
    gains = np.full((len(contexts), len(levels)), np.nan)
    for cell in plan.cells:
        row, column = contexts.index(cell.context), levels.index(cell.concurrency)
        gains[row, column] = cell.best.gain.value
        label = named(cell.best.candidate, list(plan.deployments)).replace(", ", "\n")
        axes.text(column, row, f"{cell.best.gain.value:.2f}\n{label}", ha="center", va="center", fontsize=8)
    span = max(_LEAST_SPAN, float(np.nanmax(np.abs(gains - 1))))
    image = axes.imshow(
        gains, aspect="auto", origin="lower", cmap="RdYlGn", norm=TwoSlopeNorm(1, 1 - span, 1 + span)
    )
    axes.set_xticks(range(len(levels)), [str(level) for level in levels])
    axes.set_yticks(range(len(contexts)), [f"{context:.0f}" for context in contexts])
    axes.set_xlabel("users (closed loop)")
    axes.set_ylabel("tokens of context")
    return image


def _curves(axes: Axes, plan: Plan, cells: Sequence[Cell]) -> None:
    """Gain by draft length, one curve a way of drafting and concurrency."""
    colours = {
        level: f"C{place % 10}" for place, level in enumerate(sorted({cell.concurrency for cell in cells}))
    }
    for cell in cells:
        ways = {(each.candidate.deployment, each.candidate.adaptive) for each in cell.candidates[1:]}
        for number, (deployment, adaptive) in enumerate(sorted(ways, key=str)):
            mine = [
                each
                for each in cell.candidates[1:]
                if (each.candidate.deployment, each.candidate.adaptive) == (deployment, adaptive)
            ]
            lengths = [each.candidate.draft_length for each in mine]
            style = ("-", "--", ":", "-.")[number % 4]
            what = f"{deployment}{', adaptive' if adaptive else ''}, {cell.concurrency} users"
            axes.plot(
                lengths,
                [each.gain.value for each in mine],
                style,
                color=colours[cell.concurrency],
                label=what,
            )
            low, high = [each.gain.low for each in mine], [each.gain.high for each in mine]
            axes.fill_between(lengths, low, high, color=colours[cell.concurrency], alpha=0.08)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel("draft length (nodes)")
    axes.set_ylabel("tokens a second, times none")
    if cells and len(cells[0].candidates) > 1:
        axes.legend(fontsize="x-small", ncols=2)
