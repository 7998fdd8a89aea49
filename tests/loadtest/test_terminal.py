"""What is seen of a sweep while it runs, on a terminal and where there is none, and the tables of its results."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.plan import plan_cells
from loadtest.settings import Arm, SweepSettings
from loadtest.summary import summarise
from loadtest.terminal import Progress, latency_table, result_table
from tests.loadtest.synthetic import record, simulate_sweep

SETTINGS = SweepSettings(
    host="127.0.0.1:1",
    max_tokens=8,
    arms=(Arm(name="none", num_draft_tokens=0), Arm(name="fast")),
    concurrency=(1, 2),
    rounds=1,
    requests=3,
    prompts=Path("prompts.jsonl"),
)


def shown(*, terminal: bool, stopped: bool = False) -> str:
    """What a sweep of all cells prints; one that is stopped ends within its last cell."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100)
    cells = plan_cells(SETTINGS)
    try:
        with Progress(SETTINGS, console) as progress:
            for cell in cells:
                progress(
                    {"event": "cell", "cell": cell.name, "number": cell.number, "requests": cell.requests}
                )
                for done in range(cell.requests):
                    progress({"event": "request", "cell": cell.name, "done": done + 1, "of": cell.requests})
            if stopped:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    return written.getvalue()


def test_where_there_is_no_terminal_each_cell_that_ends_has_a_line() -> None:
    cells = plan_cells(SETTINGS)
    lines = shown(terminal=False).splitlines()
    assert len(lines) == len(cells)
    for number, (line, cell) in enumerate(zip(lines, cells, strict=True), start=1):
        assert line.startswith(
            f"cell {number} of {len(cells)}: {cell.name.split('-', 1)[1]}, finished after "
        )
        assert "\x1b" not in line


def test_a_cell_that_did_not_end_has_none() -> None:
    assert len(shown(terminal=False, stopped=True).splitlines()) == len(plan_cells(SETTINGS)) - 1


def test_a_terminal_has_the_bar_alone() -> None:
    found = shown(terminal=True)
    assert "finished after" not in found and "requests" in found


@pytest.mark.parametrize("terminal", [True, False])
def test_a_warning_is_told_once(terminal: bool) -> None:
    written = io.StringIO()
    with Progress(SETTINGS, Console(file=written, force_terminal=terminal, width=100)) as progress:
        for _ in range(3):
            progress({"event": "warning", "text": "no counters"})
    assert written.getvalue().count("no counters") == 1


def test_table_fits_a_terminal(tmp_path: Path) -> None:
    asked = SweepSettings(
        arms=(*SETTINGS.arms, Arm(name="other")),
        concurrency=(1, 16),
        request_rates=(1,),
        arrival_seconds=8,
        rounds=2,
        max_tokens=16,
    )
    report = summarise(simulate_sweep(tmp_path / "run", asked, failing=1))
    console = Console(file=io.StringIO(), width=80)
    console.print(result_table(report))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    first = report.speedups[0]
    assert (
        "c16" in text and f"{first.value:.2f} ({first.low:.2f} to {first.high:.2f})" in text and "/24" in text
    )
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_table_of_some_records() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(latency_table([record([10, 20], [1, 5]), record([], [], error="ServerError")]))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1 requests completed, 1 failed" in text and "20.00" in text
