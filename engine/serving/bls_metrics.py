"""What the loops of `tensorrt_llm_bls` count, and its way to `/metrics`.

The embedded engine counts the drafts that come with requests itself. NVIDIA's backend has no metric of
speculation at all, so in front of it the BLS exports what it has seen, under the same names.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from engine.outputs import EngineStatistics
from engine.serving.bls_settings import BlsSettings
from engine.serving.metrics import EngineMetrics
from engine.serving.speculation import Count


class SpeculationCounts:
    """Counters over all rows, safe to use from their threads."""

    def __init__(self, settings: BlsSettings, arguments: Mapping[str, str]) -> None:
        """Begin at zero; export if nobody else does and something drafts."""
        self._statistics = EngineStatistics(settings.num_draft_tokens)
        self._lock = threading.Lock()
        self._metrics: EngineMetrics | None = None
        if settings.num_draft_tokens and not settings.embedded:
            self._metrics = EngineMetrics(self._statistics, arguments)
            self._metrics.declare_speculation("bls")
            self._metrics.publish()

    @contextmanager
    def row(self) -> Iterator[Count]:
        """Count the steps of one row."""
        last = time.perf_counter()

        def count(drafted: int, accepted: int, emitted: int, draft_seconds: float) -> None:
            nonlocal last
            now = time.perf_counter()
            with self._lock:
                statistics = self._statistics
                statistics.emitted_tokens += emitted
                statistics.request_steps += int(emitted > 0)
                statistics.draft_seconds += draft_seconds
                statistics.step_seconds += now - last
                if drafted:
                    statistics.count_draft(drafted, drafted, accepted)
                last = now
            self._publish()

        with self._lock:
            self._statistics.decoding += 1
        try:
            yield count
        finally:
            with self._lock:
                self._statistics.decoding -= 1
            self._publish()

    def close(self) -> None:
        """Stop exporting."""
        if self._metrics:
            self._metrics.close()

    def _publish(self) -> None:
        if self._metrics:
            self._metrics.publish()
