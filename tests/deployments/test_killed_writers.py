"""Writers that are killed at any moment: a reader finds the old or the new, and who writes next finds no rubbish."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployments.killed import PRIMITIVES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("old", ["old", ""])
@pytest.mark.parametrize("name", PRIMITIVES)
def test_old_or_new_is_there(name: str, old: str) -> None:
    command = [sys.executable, "-m", "tests.deployments.killed", name, old]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    moments = json.loads(answer.stdout)
    for number, seen in enumerate(moments):
        assert seen["found"] in (seen["before"], seen["wanted"]), f"killed at moment {number}"
        assert "next" in seen["next"] and seen["rest"] == [], f"killed at moment {number}"
    assert len(moments) > 4 and {seen["found"] for seen in moments} == {
        moments[0]["before"],
        moments[0]["wanted"],
    }
    # Where directories cannot be exchanged at once (NFS) there is a moment with neither, until somebody comes.
    assert any(seen["gap"] for seen in moments) == (not old or name == "in_two_renames")
