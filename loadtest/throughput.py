"""Output tokens per second of a cell, over a window in which the load was what the cell says.

The window opens when the first measured request is sent and closes when the last one has ended. Lead-in and
fillers (:mod:`loadtest.workload`) keep the load up throughout, so all tokens that arrive inside the window
count, whichever request they belong to. AIPerf and genai-perf divide all output tokens by the whole duration,
ramp-down included; with one user the two are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.measures import output_tokens
from loadtest.records import RequestRecord


@dataclass(frozen=True, slots=True)
class Window:
    """Part of a cell, in nanoseconds since the Unix epoch."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        """Its length."""
        return (self.end_ns - self.start_ns) / 1e9


def measured_window(records: Sequence[RequestRecord]) -> Window | None:
    """From the first measured request's sending to the last one's end.

    None if no measured request was sent.
    """
    measured = [record for record in records if record.role == "measured"]
    if not measured:
        return None
    return Window(min(record.sent_ns for record in measured), max(record.ended_ns for record in measured))


def tokens_in_window(records: Sequence[RequestRecord], window: Window) -> float:
    """Output tokens that arrived after the window's start and no later than its end.

    Those of failed requests do not count. Where the server returns no token ids, a request's tokens are
    spread evenly over its chunks, and a request cut short is taken to have had as many tokens a chunk as the
    others.
    """
    default = _tokens_per_chunk(records)
    total = 0.0
    for record in records:
        if record.failed:
            continue
        arrived = record.sent_ns + np.asarray(record.chunk_offsets_ns, dtype=np.int64)
        inside = (arrived > window.start_ns) & (arrived <= window.end_ns)
        total += float(_chunk_weights(record, default)[inside].sum())
    return total


def _chunk_weights(record: RequestRecord, default: float) -> NDArray[np.float64]:
    if record.chunk_tokens is not None:
        return np.asarray(record.chunk_tokens, dtype=np.float64)
    chunks = len(record.chunk_offsets_ns)
    tokens = output_tokens(record)
    return np.full(chunks, default if tokens is None or not chunks else tokens / chunks)


def _tokens_per_chunk(records: Sequence[RequestRecord]) -> float:
    counted = [record for record in records if record.completed and record.output_tokens is not None]
    chunks = sum(len(record.chunk_offsets_ns) for record in counted)
    return sum(record.output_tokens or 0 for record in counted) / chunks if chunks else 1.0
