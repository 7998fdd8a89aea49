"""Runs one command of a build: output into a log, the last line told, and no process left behind.

The child leads a process group of its own, so Ctrl-C in the terminal reaches only us; we then end the whole
group (compilers and MPI ranks start children of theirs) before anything else happens.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from build.interrupts import terminate_is_interrupt

_TICK_SECONDS = 0.2
_TAIL_BYTES = 4096
# Docker passes a signal on to its container and waits for it; 10 s is what `docker stop` grants.
_GRACE = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))


def run_logged(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    on_tick: Callable[[float, str], None],
) -> int:
    """Run a command with its output appended to `log`; its exit status (negative: the signal that ended it).

    Args:
        command: program and arguments.
        environment: variables beside our own.
        log: gets standard output and standard error.
        on_tick: hears several times a second of the elapsed seconds and the log's last line.

    Raises:
        OSError: the program cannot be started.
        KeyboardInterrupt: Ctrl-C or a request to terminate; the group has ended by then.
    """
    started = time.monotonic()
    with log.open("ab") as output, terminate_is_interrupt():
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return process.wait(_TICK_SECONDS)
                on_tick(time.monotonic() - started, last_line(log))
        finally:
            _end_group(process)


def last_line(log: Path) -> str:
    """The last line of a log that says something; progress bars that return to the line's start count as lines."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End every process of the group, in rising earnest; another Ctrl-C hurries it on."""
    for number, seconds in _GRACE:
        with suppress(KeyboardInterrupt):
            if not _group_runs(process):
                break
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end and _group_runs(process):
                time.sleep(0.02)


def _group_runs(process: subprocess.Popen[bytes]) -> bool:
    process.poll()
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
