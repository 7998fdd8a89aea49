"""Memory that a model's process has freed goes back to the system, also from between what it still uses."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from pathlib import Path
from engine.serving.life import give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

taken = [bytes(2_000) for _ in range(50_000)]
kept = taken[::1_000] + taken[-1:]
del taken
before = resident()
if sys.argv[1] == "give back":
    give_back_memory()
print(before - resident())
"""


def freed(what: str) -> int:
    """Bytes of a hundred million that went back to the system."""
    ran = subprocess.run([sys.executable, "-c", _PROGRAM, what], capture_output=True, text=True, check=True)
    return int(ran.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_was_freed_between_what_is_used_is_given_back() -> None:
    assert freed("keep") < 10_000_000, "nobody else gives it back"
    assert freed("give back") > 80_000_000
