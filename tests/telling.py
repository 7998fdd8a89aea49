"""What a long run of tests says while it runs.

It may be cut off, by a machine's limit of time, before pytest comes to its summary. So a failure is told when it
happens, and every two minutes how long the run has taken and where it is.
"""

from __future__ import annotations

import time

import pytest
from _pytest.terminal import TerminalReporter

_INTERVAL_SECONDS = 120.0


class Telling:
    """A plugin of the process that prints."""

    def __init__(self, terminal: TerminalReporter) -> None:
        self._terminal = terminal
        self._began = self._told = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One step of a test has ended."""
        if report.failed:
            self._terminal.ensure_newline()
            self._terminal.write_sep("_", f"{report.nodeid} failed ({report.when})", red=True)
            report.toterminal(self._terminal._tw)
        now = time.monotonic()
        if report.failed or now - self._told > _INTERVAL_SECONDS:
            self._told = now
            self._terminal.ensure_newline()
            self._terminal.write_line(f"after {(now - self._began) / 60:.1f} min: {report.nodeid}")


def tell(config: pytest.Config) -> None:
    """Begin; the processes of `pytest -n` have no terminal, the one that has started them has."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Telling(terminal))
