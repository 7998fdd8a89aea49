"""Twenty blows to a running service; `python -m tests.chaos` deals more, and asks for the times that are promised."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.outside, pytest.mark.triton]


def test_twenty_blows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--blows", "20", "--back", "180"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["blows"] == 20 and told["answered"] > 20 and told["failed"] > 0
    assert told["complaints"] == [] and told["wrong"] == 0
