"""Latency of one request, from its record.

The definitions are those of AIPerf and genai-perf, with tokens counted by the server and not by chunks, since
with speculation a chunk carries several tokens:

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
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from loadtest.records import RequestRecord
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
