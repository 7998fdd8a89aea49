"""What is seen of a sweep while it runs, on a terminal and where there is none."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from loadtest.plan import plan_cells
from loadtest.progress import Progress
from loadtest.settings import Arm, SweepSettings

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
