"""Running somebody else's program: bounded in time, alone in a process group, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from deployments.errors import DrafthouseError

_TAIL = 4000  # characters of output that an error message shows


class ProgramError(DrafthouseError, RuntimeError):
    """The program failed or took too long; carries the end of what it said."""


def run(
    command: Sequence[str | Path],
    *,
    seconds: float,
    directory: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> str:
    """Standard output and error of a program, mixed, once it has ended well.

    Args:
        command: program and arguments.
        seconds: longest it may take; then it is killed with everything it started.
        directory: where it runs.
        variables: its whole environment; None: this process's.

    Raises:
        ProgramError: it failed, or the time was up.
        OSError: there is no such program.
    """
    process = subprocess.Popen(
        [str(part) for part in command], cwd=directory, env=variables, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        output, _ = process.communicate()
        raise ProgramError(f"{command[0]} was not done after {seconds:g} s:\n{output[-_TAIL:]}") from None
    finally:
        _end(process)
    if process.returncode:
        raise ProgramError(f"{command[0]} ended with status {process.returncode}:\n{output[-_TAIL:]}")
    return output


def _end(process: subprocess.Popen[str]) -> None:
    """Kill what is left of the program's process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
