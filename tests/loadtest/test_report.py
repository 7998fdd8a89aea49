from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.findings import findings
from loadtest.report import render_html, write_report
from loadtest.schema import Report
from loadtest.settings import Arm, Slo, SweepSettings
from loadtest.terminal import result_table
from tests.loadtest.synthetic import simulate_sweep

SETTINGS = SweepSettings(
    arms=(Arm(name="none", num_draft_tokens=0), Arm(name="anpd"), Arm(name="other")),
    concurrency=(1, 16),
    request_rates=(1,),
    arrival_seconds=8,
    rounds=2,
    max_tokens=16,
    slo=Slo(ttft=60),
    subject={"model": "<script>alert(1)</script>"},
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "run"
    simulate_sweep(path, SETTINGS, failing=1)
    write_report(path)
    return path


@pytest.fixture(scope="module")
def report(run: Path) -> Report:
    return Report.model_validate_json((run / "report.json").read_text(encoding="utf-8"))


class Page(HTMLParser):
    """Collects what a page links to, and checks that its tags are balanced."""

    VOID = frozenset({"meta", "img", "source", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_but_itself(run: Path) -> None:
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags and "link" not in page.tags


def test_page_has_the_figures(run: Path, report: Report) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", (run / "report.html").read_text(encoding="utf-8")))
    for point in report.points:
        assert f"{point.output_tokens_per_second:,.1f}" in text
    for speedup in report.speedups:
        told = f"{speedup.value:.2f}" if speedup.verdict != "not shown" else "no difference shown"
        assert f"{told} ({speedup.low:.2f} to {speedup.high:.2f})" in text
    for sentence in findings(report):
        assert sentence in text.replace("&#39;", "'")
    assert report.digest in text and "QueueFull" in text


def test_plots_are_pictures(run: Path) -> None:
    plots = {file.stem: file.read_bytes() for file in (run / "plots").iterdir()}
    assert set(plots) == {
        "throughput",
        "speedup",
        "latency-closed",
        "latency-open",
        "acceptance-by-category",
        "acceptance-by-position",
        "failures",
    }
    assert all(picture.startswith(b"\x89PNG") for picture in plots.values())


def test_report_has_what_produced_it(report: Report) -> None:
    assert report.settings == SETTINGS.model_dump(mode="json")
    assert report.provenance["command"] == ["drafthouse", "loadtest", "spec.yaml"]


def test_every_field_of_the_schema_is_described() -> None:
    schema = Report.model_json_schema()
    undocumented = {
        f"{name}.{field}"
        for name, model in {**schema["$defs"], "Report": schema}.items()
        for field, details in model["properties"].items()
        if "description" not in details
    }
    assert undocumented == set()


def test_unfinished_sweep_has_a_report_that_says_so(tmp_path: Path) -> None:
    simulate_sweep(tmp_path / "run", SETTINGS, cells=4)
    report = write_report(tmp_path / "run")
    assert not report.complete
    assert any("interrupted with 1 of 18 cells" in sentence for sentence in findings(report))


@pytest.mark.parametrize(("arms", "cells", "failing"), [(1, None, 0), (2, 0, 0), (2, None, 99)])
def test_there_is_always_a_page(tmp_path: Path, arms: int, cells: int | None, failing: int) -> None:
    """With nothing to compare with, nothing finished, or nothing but failures."""
    asked = SweepSettings(arms=SETTINGS.arms[:arms], concurrency=(1,), rounds=1, max_tokens=4)
    simulate_sweep(tmp_path / "run", asked, cells=cells, failing=failing)
    report = write_report(tmp_path / "run")
    assert report.speedups == []
    assert Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize(("silent", "ratios"), [("none", 0), ("anpd", 0), ("translation", 1)])
def test_answers_of_no_tokens_are_reported(tmp_path: Path, silent: str, ratios: int) -> None:
    asked = SweepSettings(arms=SETTINGS.arms[:2], concurrency=(1,), rounds=1, max_tokens=4)
    simulate_sweep(tmp_path / "run", asked, silent=silent)
    report = write_report(tmp_path / "run")
    assert len(report.speedups) == ratios
    for point in report.points:
        assert point.failures == 0
        assert point.latency is not None and point.latency.count == point.requests
        heard = point.ttft.count if point.ttft else 0
        assert heard == 0 if point.arm == silent else 0 < heard
    assert Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).open == []


def test_answers_of_one_token_are_reported(tmp_path: Path) -> None:
    """Between tokens there is no time, so that not every picture has something to show."""
    asked = SweepSettings(arms=SETTINGS.arms[:2], concurrency=(1, 4), rounds=2, max_tokens=1)
    simulate_sweep(tmp_path / "run", asked)
    report = write_report(tmp_path / "run")
    assert all(point.ttft and not point.itl for point in report.points)
    assert (tmp_path / "run" / "plots" / "latency-closed.png").is_file()
    assert Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).open == []


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"value": 3.62, "low": None, "high": None, "by_round": [3.62]}, "(3.62 in one round"),
        ({"value": 1.22, "low": 0.89, "high": 1.67}, "(95 % interval 0.89 to 1.67)"),
    ],
)
def test_what_is_not_shown_is_not_called_a_speed_up(
    changes: dict[str, Any], shown: str, report: Report, tmp_path: Path
) -> None:
    """Neither in the sentences, nor as the page's big number, nor in the table of the terminal."""
    unsure = [
        each.model_copy(update={**changes, "verdict": "not shown"}) if each.arm == "anpd" else each
        for each in report.speedups
    ]
    doubtful = report.model_copy(update={"speedups": unsure})
    text = " ".join(findings(doubtful))
    assert f"At 1 user no difference is shown between anpd and none {shown}" in text
    assert "No difference between anpd and the baseline is shown at 1 and 16 users." in text
    page = render_html(doubtful, {})
    big = re.findall(r"<b[^>]*>([^<]*)</b>", page)
    assert "no difference shown" in big and f"{changes['value']:.2f}×" not in big
    console = Console(file=io.StringIO(), width=80)
    console.print(result_table(doubtful))
    assert isinstance(console.file, io.StringIO)
    rows = [line for line in console.file.getvalue().splitlines() if " anpd " in line and "rps" not in line]
    assert len(rows) == 2 and all("not shown" in row for row in rows)
