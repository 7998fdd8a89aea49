"""Writes the report of a sweep: report.json, report.html and plots/*.png, all from its raw records.

    from loadtest.report import write_report
    report = write_report(Path("runs/2026-03-01"))      # also after an interruption, or with newer code

The page needs nothing but itself: style and images are inside it, and it follows the reader's light or dark
setting.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from deployments.files.writing import replace_file, write_text
from loadtest.findings import findings
from loadtest.plots import DARK, LIGHT, PLOTS, draw
from loadtest.run_directory import RunDirectory
from loadtest.schema import Distribution, Report
from loadtest.summary import summarise


class Picture(NamedTuple):
    """A figure as two data URIs, for light and dark pages."""

    light: str
    dark: str


def write_report(path: Path) -> Report:
    """Compute the report of the sweep in a directory and write it there.

    Raises:
        RunDirectoryError, RecordError: the directory is not a sweep, or a record is unreadable.
    """
    directory = RunDirectory(path)
    report = summarise(directory)
    write_text(directory.report_json, report.model_dump_json(indent=1))
    write_text(directory.report_html, render_html(report, _pictures(report, directory.plots)))
    return report


def _pictures(report: Report, folder: Path) -> dict[str, Picture]:
    """Draw every figure.

    The light ones are also written as PNG files, and those of an earlier report removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Picture] = {}
    for name, plot in PLOTS.items():
        file = folder / f"{name}.png"
        light, dark = draw(plot, report, LIGHT), draw(plot, report, DARK)
        if light is None or dark is None:
            file.unlink(missing_ok=True)
            continue
        with replace_file(file) as partial:
            partial.write_bytes(light)
        pictures[name] = Picture(_data_uri(light), _data_uri(dark))
    return pictures


def render_html(report: Report, pictures: dict[str, Picture]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(["html", "j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=_number, percent=_percent, spread=_spread)
    return environment.get_template("report.html.j2").render(
        report=report,
        pictures=pictures,
        findings=findings(report),
        speedups={(each.load, each.arm): each for each in report.speedups},
    )


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _spread(distribution: Distribution | None, digits: int = 0) -> list[str]:
    """p50, p90 and p99."""
    if distribution is None:
        return ["-"] * 3
    return [_number(value, digits) for value in (distribution.p50, distribution.p90, distribution.p99)]


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
