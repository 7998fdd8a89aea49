"""Figures of requests and of cells, from their records.

*Latency of a request.* The definitions are those of AIPerf and genai-perf, with tokens counted by the server and not by
chunks, since with speculation a chunk carries several tokens:

===============  ==============================================================  ===========================
TTFT             first output - start                                            `time_to_first_token`
request latency  last output - start, the end's if there is no output            `request_latency`
ITL              (latency - TTFT) / (output tokens - tokens of the first chunk)  AIPerf `inter_token_latency`
TPOT             (latency - TTFT) / (output tokens - 1)                          genai-perf, vLLM `tpot`
ICL              gaps between neighbouring chunks: what a reader sees            AIPerf `inter_chunk_latency`
queue            server's first scheduling - server's arrival                    contract's `*_time_ns`
===============  ==============================================================  ===========================

ITL and TPOT are the same number where the first chunk holds one token. The start is the moment of sending; in
an open loop it is the moment the request was due, so that a client that falls behind cannot make the server
look better.

*Throughput of a cell*: output tokens per second over a window in which the load was what the cell says. The window
opens when the first measured request is sent and closes when the last one has ended. Lead-in and fillers
(:mod:`loadtest.plan`) keep the load up throughout, so all tokens that arrive inside the window count, whichever request
they belong to. AIPerf and genai-perf divide all output tokens by the whole duration, ramp-down included; with one user
the two are the same.

*Acceptance length* of a set of requests: tokens emitted per target step, pooled over all steps as Spec-Bench does. A
request of n tokens of which `a` were accepted drafts took ``n - a`` steps, the one that ends the prefill included; a
last step cut by the token limit counts as a step.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.records import CellRecord, RequestRecord
from loadtest.schema import PositionReport
from loadtest.settings import Slo

_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Measures:
    """Latencies of one completed request, in milliseconds.

    None where the request is too short to have one.
    """

    ttft: float | None
    latency: float
    itl: float | None
    tpot: float | None
    icl: tuple[float, ...]
    queue: float | None
    tokens_per_second: float | None
    """Output tokens / request latency, prefill included (Spec-Bench's speed of one answer); None without tokens."""

    def meets(self, slo: Slo) -> bool:
        """Whether all objectives are met; one that the request is too short to have is."""
        values = {"ttft": self.ttft, "itl": self.itl, "tpot": self.tpot, "latency": self.latency}
        return all((values[name] or 0.0) <= limit for name, limit in slo.limits().items())


def measure(record: RequestRecord) -> Measures:
    """The latencies of a completed request.

    Raises:
        ValueError: the request did not complete.
    """
    if not record.completed:
        raise ValueError(f"request {record.index} of {record.cell} did not complete; it has no latency")
    late = 0 if record.due_ns is None else record.sent_ns - record.due_ns
    offsets = record.chunk_offsets_ns or (record.ended_ns - record.sent_ns,)
    ttft, latency = late + offsets[0], late + offsets[-1]
    tokens = output_tokens(record)
    first = record.chunk_tokens[0] if record.chunk_tokens else 1
    return Measures(
        ttft=ttft / _NS_PER_MS if record.chunk_offsets_ns else None,
        latency=latency / _NS_PER_MS,
        itl=_per_token(latency - ttft, tokens, first),
        tpot=_per_token(latency - ttft, tokens, 1),
        icl=tuple((after - before) / _NS_PER_MS for before, after in itertools.pairwise(offsets)),
        queue=_queue(record),
        tokens_per_second=tokens * 1e9 / latency if tokens and latency > 0 else None,
    )


def output_tokens(record: RequestRecord) -> int | None:
    """Tokens generated: the server's count, or that of the ids it sent; None if it gave neither."""
    if record.output_tokens is not None:
        return record.output_tokens
    return None if record.chunk_tokens is None else sum(record.chunk_tokens)


def _per_token(duration_ns: int, tokens: int | None, before: int) -> float | None:
    if tokens is None or tokens <= before:
        return None
    return duration_ns / (tokens - before) / _NS_PER_MS


def _queue(record: RequestRecord) -> float | None:
    server = record.server
    if server is None or server.arrival_ns is None or server.first_scheduled_ns is None:
        return None
    return (server.first_scheduled_ns - server.arrival_ns) / _NS_PER_MS


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


@dataclass(frozen=True, slots=True)
class MeasuredCell:
    """One finished cell."""

    cell: CellRecord
    records: Sequence[RequestRecord]
    """Of every role, by index."""
    seconds: float
    """Length of the measured window; 0 if nothing was measured."""
    tokens: float
    """Output tokens that arrived in it."""

    @classmethod
    def of(cls, cell: CellRecord, records: Sequence[RequestRecord]) -> MeasuredCell:
        """Measure a cell from its records."""
        window = measured_window(records)
        if window is None:
            return cls(cell, records, 0.0, 0.0)
        return cls(cell, records, window.seconds, tokens_in_window(records, window))

    @property
    def measured(self) -> list[RequestRecord]:
        """Its measured requests, failed ones included."""
        return [record for record in self.records if record.role == "measured"]

    @property
    def rate(self) -> float | None:
        """Output tokens per second; None if nothing was delivered."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def cells_of(cells: Iterable[MeasuredCell], arm: str, load: str | None = None) -> list[MeasuredCell]:
    """The cells of one arm, at one load point or at all."""
    return [cell for cell in cells if cell.cell.arm == arm and load in (None, cell.cell.load)]


def pooled_rate(cells: Sequence[MeasuredCell]) -> float | None:
    """Output tokens per second over all windows, a short one weighing as much as it lasted; None without any."""
    seconds, tokens = sum(cell.seconds for cell in cells), sum(cell.tokens for cell in cells)
    return tokens / seconds if tokens and seconds else None


def measured_requests(cells: Iterable[MeasuredCell]) -> list[RequestRecord]:
    """The measured requests of some cells, failed ones included."""
    return [record for cell in cells for record in cell.measured]


def acceptance_length(records: Iterable[RequestRecord]) -> float | None:
    """Tokens per target step over all requests that report both; None if none does."""
    tokens = steps = 0
    for record in records:
        count = output_tokens(record)
        if record.accepted_tokens is not None and count:
            tokens += count
            steps += max(1, count - record.accepted_tokens)
    return tokens / steps if steps else None


def acceptance_rate(records: Iterable[RequestRecord]) -> float | None:
    """Accepted / proposed draft tokens over all requests; None if nothing was proposed."""
    drafted = accepted = 0
    for record in records:
        drafted += record.draft_tokens or 0
        accepted += record.accepted_tokens or 0
    return accepted / drafted if drafted else None


def by_position(arm: str, cells: Sequence[CellRecord]) -> list[PositionReport]:
    """Acceptance at each position, over all cells of one arm.

    Positions that were never drafted are left out.
    """
    drafted: dict[int, int] = {}
    accepted: dict[int, int] = {}
    for cell in cells:
        for total, counts in ((drafted, cell.drafted_by_position), (accepted, cell.accepted_by_position)):
            for position, count in (counts or {}).items():
                total[position] = total.get(position, 0) + count
    return [
        PositionReport(
            arm=arm,
            position=position,
            drafted=count,
            accepted=accepted.get(position, 0),
            rate=accepted.get(position, 0) / count,
        )
        for position, count in sorted(drafted.items())
        if count
    ]


def found_share(records: Sequence[RequestRecord]) -> float | None:
    """Share of their KV cache blocks that requests found filled; None where the server does not tell."""
    told = [record for record in records if record.blocks]
    blocks = sum(record.blocks or 0 for record in told)
    return sum(record.reused_blocks or 0 for record in told) / blocks if blocks else None
