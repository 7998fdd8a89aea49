"""A minute of the soak and of the overload; `python -m tests.soak` and `python -m tests.overload` take longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.outside, pytest.mark.triton]


def told(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the document at the end, and all that was printed."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.stdout, printed
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), printed


def test_a_minute_of_the_soak_and_on(tmp_path: Path) -> None:
    for minutes in ("0.5", "1"):
        status, figures, printed = told(
            "tests.soak", "--minutes", minutes, "--every", "1", "--into", str(tmp_path)
        )
        assert status == 0, printed
    assert figures["minutes"] > 0.9 and figures["right"] > 50 and figures["left"] > 20
    assert figures["wrong"] == figures["failed"] == figures["late"] == 0
    assert len(list(tmp_path.glob("run-*.jsonl"))) == 2
    status, judged, _ = told("tests.soak", "--judge", "--into", str(tmp_path))
    assert status == 0 and judged == figures


def test_hostile_clients_change_no_answer() -> None:
    """How much they slow others down is measured where nothing else runs."""
    _, figures, printed = told("tests.overload", "--rounds", "1", "--seconds", "10")
    assert figures["wrong"] == 0 and figures["answers"][1] > 0, printed
    assert figures["clients"] == 40 and figures["hostile"] == 4
