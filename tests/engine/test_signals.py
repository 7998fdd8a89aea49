"""A process that has closed several networks still takes signals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.tiny import TinyTargets

ROOT = Path(__file__).resolve().parents[2]
CLOSED = """
import os, signal, sys
from pathlib import Path
from tests.runners import openvino_runner

runners = [openvino_runner(Path(sys.argv[1]), num_blocks=4, threads=1) for _ in range(3)]
while runners:
    del runners[0]
try:
    os.kill(os.getpid(), signal.SIGINT)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_is_heard_where_networks_were_closed(tiny_targets: TinyTargets) -> None:
    engine = tiny_targets.engine("llama", "fp32")
    command = [sys.executable, "-c", CLOSED, str(engine)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert (run.returncode, run.stdout) == (0, "interrupted\n"), run.stderr
