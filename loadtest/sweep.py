"""Measures a served model: every arm at every load, round after round, and writes the report.

    from loadtest.settings import SweepSettings
    from loadtest.sweep import run_sweep

    result = run_sweep(SweepSettings(host="localhost:8001"), Path("runs/today"))
    print(result.report.speedups)

Locust runs in a process of its own, since it replaces the standard library's blocking calls with gevent's. It
measures all cells in one go. Ctrl-C stops it between two chunks; what is finished stays, and the same call
goes on there.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.errors import DrafthouseError
from loadtest import provenance
from loadtest.prompts import keep_categories, load, render
from loadtest.run_directory import RunDirectory
from loadtest.schema import Report
from loadtest.servers import look, silent
from loadtest.settings import SweepSettings

_ROOT = Path(__file__).resolve().parent.parent
_LOCUSTFILE = Path(__file__).with_name("sweep_locustfile.py")
_STOP_S = 15.0


class SweepError(DrafthouseError, RuntimeError):
    """The sweep could not be measured; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What :func:`run_sweep` leaves behind."""

    report: Report
    directory: Path
    interrupted: bool
    """Whether Ctrl-C stopped it; the report then covers the cells that are finished."""


News = Mapping[str, Any]


def run_sweep(
    settings: SweepSettings, path: Path, on_news: Callable[[News], None] = lambda _: None
) -> SweepResult:
    """Measure the cells that are missing in a directory, and write the report there.

    Args:
        settings: what to measure.
        path: new, empty, or with an unfinished sweep of the same settings.
        on_news: is told of progress as it happens: ``{"event": "cell", "cell": "002-c1-none", "number": 2,
            "requests": 12}`` when a cell begins, ``{"event": "request", "cell": ..., "done": 3, "of": 12}`` for
            each of its requests that ends (``"reading"``: of those that read its prompts before it),
            ``{"event": "warning", "text": ...}``. :class:`loadtest.terminal.Progress`
            shows it.

    Raises:
        PromptFileError: the prompts cannot be used.
        client.errors.InvalidRequest: the chat template cannot.
        RunDirectoryError: the directory holds something else.
        ServerError, CacheError: a server is not there, is another one, or cannot have its cache as asked for.
        SweepError: the server does not answer any more, or Locust failed.
    """
    render(keep_categories(load(settings.prompts), settings.categories), settings.chat_template)
    directory = RunDirectory(path.resolve())
    with directory.locked():
        interrupted = measure_sweep(settings, directory, on_news)
        # Its plots take Matplotlib, which takes a second to import, and not every command that knows of sweeps draws.
        from loadtest.report import write_report

        return SweepResult(write_report(directory.path), directory.path, interrupted)


def measure_sweep(settings: SweepSettings, directory: RunDirectory, on_news: Callable[[News], None]) -> bool:
    """Measure what is missing in a locked directory, without a report; whether Ctrl-C stopped it."""
    directory.begin(settings, provenance.collect())
    if not directory.missing():
        return False
    servers = look(settings)
    directory.note_servers(servers)
    for host in silent(servers):
        on_news({"event": "warning", "text": f"{host} does not say which deployment it serves"})
    try:
        _measure(settings, directory, on_news)
    except KeyboardInterrupt:
        return True
    return False


def _measure(settings: SweepSettings, directory: RunDirectory, on_news: Callable[[News], None]) -> None:
    log = directory.path / "locust.log"
    aborted = None
    with _locust(settings, directory, log) as process:
        assert process.stdout is not None
        for line in process.stdout:
            news = _parse(line)
            if news.get("event") == "aborted":
                aborted = str(news["reason"])
            elif news:
                on_news(news)
    if aborted:
        raise SweepError(aborted)
    if process.returncode and directory.missing():
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SweepError(
            f"Locust ended with exit code {process.returncode}; its log, {log}, ends with:\n{tail}"
        )


@contextmanager
def _locust(settings: SweepSettings, directory: RunDirectory, log: Path) -> Iterator[subprocess.Popen[str]]:
    """Run Locust, and end it when the block is left early."""
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            _command(settings, directory),
            cwd=directory.path,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # Ctrl-C reaches this process only, which then stops Locust in order
        )
        try:
            yield process
            process.wait()
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    """End Locust, first by asking, and workers that outlive their master."""
    if process.poll() is None:
        _signal_group(process, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_STOP_S)
    _signal_group(process, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _command(settings: SweepSettings, directory: RunDirectory) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--loglevel", "WARNING", "--sweep", str(directory.path)]
    if settings.processes > 1:
        port = str(_free_port())
        command += ["--processes", str(settings.processes), "--master-bind-host", "127.0.0.1"]
        command += ["--master-bind-port", port, "--master-port", port]
    return command


def _environment() -> dict[str, str]:
    """This environment without Locust's own variables, which would change the run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    paths = [str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(paths)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _parse(line: str) -> News:
    """A line of the conductor's; whatever else Locust prints is no news."""
    try:
        news = json.loads(line)
    except json.JSONDecodeError:
        return {}
    return news if isinstance(news, dict) else {}
