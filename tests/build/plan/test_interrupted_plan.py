"""Ctrl-C, termination and stubborn children: nothing half-written, nothing left running, and resuming."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from build.plan import processes
from build.plan.run import run_plan
from build.plan.runners import LocalRunner
from tests.build.plan.plans import hanging, joining

_GRANDCHILD = re.compile(r"^grandchild (\d+)$", re.MULTILINE)
ROOT = Path(__file__).parents[3]
_PROGRAM = """
from pathlib import Path
from build.plan.run import run_plan
from build.plan.runners import LocalRunner
from tests.build.plan.plans import hanging, joining
steps = (joining("first", "a", Path("first")), hanging("second", Path("second")))
try:
    run_plan(steps, Path("plan"), LocalRunner())
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return once the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_plan_leaves_nothing_and_resumes(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", _PROGRAM], cwd=tmp_path, env=environment)
    log = tmp_path / "plan/logs/second.log"
    try:
        wait_for(lambda: log.exists() and _GRANDCHILD.search(log.read_text()) is not None)
        grandchild = int(_GRANDCHILD.findall(log.read_text())[0])
        assert runs(grandchild)
        assert (tmp_path / ".second.partial/second/half").exists()
        process.send_signal(number)
        assert process.wait(60) == 130
    finally:
        process.terminate()
        process.wait(60)
    assert not runs(grandchild)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "plan"]
    monkeypatch.chdir(tmp_path)
    steps = (joining("first", "a", Path("first")), joining("second", "b", Path("second"), Path("first")))
    assert run_plan(steps, Path("plan"), LocalRunner()) == ("second",)
    assert Path("second").read_text() == "b a"


def test_a_child_that_ignores_signals_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        processes, "_GRACE", ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
    )
    stubborn = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""
    log = tmp_path / "log"

    def interrupt(seconds: float, line: str) -> None:
        if line.startswith("pid"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run_logged([sys.executable, "-c", stubborn], {}, log, interrupt)
    assert not runs(int(log.read_text().split()[1]))


def test_the_last_line_of_a_progress_bar_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"loading\n" + b"x" * 9000 + b"\n 10%\r 20%\r\n\n")
    assert processes.last_line(log) == "20%"
    log.write_bytes(b"")
    assert processes.last_line(log) == ""


def test_progress_tells_time_and_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []

    def show(line: str) -> None:
        said.append(line)
        if "  grandchild " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan((hanging("build", Path("engine")),), Path("plan"), LocalRunner(), show=show)
    assert said[-1].startswith("1/1 build 0:0") and "  grandchild " in said[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan"]
