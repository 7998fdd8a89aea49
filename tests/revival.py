"""Servers that Triton's own gRPC server has brought down, started again for the tests that follow.

Tests leave streams, as clients do, and each that is left may meet one of two faults of Triton's (docs/serve.md, known
limits): it aborts, or it locks itself up; about once in a thousand. A server that many tests share is then started
again on its ports, and the test that failed meanwhile is run once more (`tests/conftest.py`). A server that has failed
in any other way stays as it is, and what it logged last is told with each test that fails meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.grpc_door import fault

ABORTED = "ASSERTION FAILED: prior > 0"
_LOOK_SECONDS = 5.0
_LINES = 20


class Revivals:
    """The servers that run now, and whether one that has ended had met such a fault."""

    def __init__(self) -> None:
        self._running: list[tuple[Path, str, Callable[[], None]]] = []
        self._met = False

    @contextmanager
    def of(self, log: Path, grpc: str, start_again: Callable[[], None]) -> Iterator[None]:
        """A server that runs while the block does.

        Args:
            log: that it writes; begun anew when it is started again.
            grpc: its address.
            start_again: ends what is left of it and starts it on the same ports.
        """
        server = log, grpc, start_again
        self._running.append(server)
        try:
            yield
        finally:
            self._running.remove(server)
            self._met |= _aborted(log)

    def made(self) -> bool:
        """Start again all that have met such a fault; whether there was any since this was asked last."""
        met, self._met = self._met, False
        for log, grpc, start_again in list(self._running):
            told = fault(grpc, _LOOK_SECONDS)
            if _aborted(log) or (told is not None and "gRPC streams" in told and "DEADLINE_EXCEEDED" in told):
                start_again()
                met = True
        return met

    def ended(self) -> dict[str, str]:
        """The ends of the logs of those that are there no more, by address."""
        gone = (
            (log, grpc)
            for log, grpc, _ in self._running
            if "UNAVAILABLE" in (fault(grpc, _LOOK_SECONDS) or "")
        )
        return {grpc: _end(log) for log, grpc in gone}


REVIVALS = Revivals()


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LINES:]) if log.exists() else "no log"


def _aborted(log: Path) -> bool:
    return log.exists() and ABORTED in log.read_text(errors="replace")
