"""What all commands say: errors, what Ctrl-C leaves, progress with an end in sight, JSON for programs alone."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli import common
from cli.common import TimeLeft, folded, told
from deployments.spec import SpecError

ROOT = Path(__file__).parents[2]


def in_terminal(program: str, *, columns: int = 80, stop_at: str | None = None) -> tuple[int, str]:
    """Exit status and output of a program in a terminal of its own; Ctrl-C once it has printed `stop_at`."""
    parent, child = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    said = b""
    try:
        while part := os.read(parent, 4096):
            said += part
            if stop_at and stop_at.encode() in said:
                stop_at = None
                process.send_signal(signal.SIGINT)
    except OSError:  # how a terminal tells that its last user has gone
        pass
    os.close(parent)
    return process.wait(60), said.decode()


def test_json_is_for_programs() -> None:
    program = "from cli.common import for_programs; print('table'); for_programs('{}')"
    status, said = in_terminal(program)
    assert (status, said.split()) == (0, ["table"])
    piped = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert piped.stdout.split() == ["table", "{}"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_was_kept_is_told(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, told() as stop:
        stop.kept = lambda: "two of three cells are kept in here; the same command goes on"
        os.kill(os.getpid(), number)
        signal.pause()
    assert left.value.code == 130
    assert "stopped: two of three cells are kept in here; the same command goes on" in capsys.readouterr().err


def test_an_error_is_a_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, told():
        raise SpecError("x.yaml: engine.precison: [int8] unknown key")
    assert left.value.code == 2
    assert "error: x.yaml: engine.precison: [int8] unknown key" in capsys.readouterr().err


def test_what_is_printed_goes_above_the_bar() -> None:
    path = "runs/engines/" + "long-name-" * 9
    program = f"""
import time
from cli.common import progress, say
with progress() as show:
    show("compiling", 0.5)
    time.sleep(0.3)
    say("build: {path}")
    time.sleep(0.3)
"""
    status, said = in_terminal(program)
    assert status == 0 and "compiling" in said
    before, _, _ = said.partition(f"build: {path}")
    assert before.rstrip(" ").endswith(("\r", "\x1b[2K"))  # the bar's line was cleared first


def test_progress_is_told_in_a_log_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with common.progress() as show:
        for step in range(31):
            now = float(step)
            show(f"step {step}", step / 60)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 10 50 s left", "step 20 40 s left", "step 30 30 s left"]


def test_the_time_left_follows_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    now, left = 0.0, TimeLeft()
    monkeypatch.setattr("time.monotonic", lambda: now)
    assert [left(0.0), left(None), left(0.0)] == ["", "", ""]
    now = 10.0
    assert left(0.1) == "2 min left"
    now = 60.0
    assert left(0.5) == "60 s left"
    assert left(0.0) == ""  # something else begins
    now = 64.0
    assert left(0.5) == "4 s left"


def test_lines_end_between_words_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.errors, "_width", 40)
    path = "/somewhere/" + "deep/" * 12 + "model.safetensors"
    text = f"{path} is damaged: fetch it again, or convert it from what it was made of"
    lines = folded(text, indent=4, first=7).splitlines()
    assert lines[0] == path
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(len(line) <= 40 for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == text
