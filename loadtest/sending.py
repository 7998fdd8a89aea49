"""Sends one request through the client and writes down what happened. Knows nothing of Locust."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from client import Chunk, DrafthouseClient, GenerationResult, SamplingOptions, Stream, errors
from loadtest.plan import Role
from loadtest.prompts import Prompt
from loadtest.records import RequestRecord, ServerTimes, epoch_ns


@dataclass(frozen=True, slots=True)
class Assignment:
    """One request to send."""

    cell: str
    arm: str
    load: str
    round: int
    role: Role
    index: int
    prompt: Prompt
    due_ns: int | None
    """Open loop: when it is due, since the Unix epoch; closed loop: None."""
    options: SamplingOptions
    deadline: float
    """Seconds after which it has failed."""
    host: str | None = None
    """host:port to send it to; None: the user's own."""


def send(
    client: DrafthouseClient,
    assignment: Assignment,
    worker: str,
    on_start: Callable[[Stream], None],
    was_cancelled: Callable[[], bool],
) -> RequestRecord:
    """Send a request, wait for its end, and return its record. Errors of the client go into the record.

    Args:
        client: where to send it.
        assignment: what to send.
        worker: name of this process, for the record.
        on_start: is given the stream before the first byte is sent, so that another greenlet can cancel it.
        was_cancelled: whether someone did so on purpose, in which case the end is no failure.
    """
    began_ns = time.perf_counter_ns()
    stream = client.stream(assignment.prompt.text, deadline=assignment.deadline, **assignment.options)
    on_start(stream)
    chunks: list[Chunk] = []
    error: errors.ClientError | None = None
    try:
        with stream:
            chunks.extend(stream)
    except errors.ClientError as caught:
        error = None if isinstance(caught, errors.Cancelled) and was_cancelled() else caught
    return _record(assignment, worker, began_ns, chunks, _result(stream), error)


def _result(stream: Stream) -> GenerationResult | None:
    """What the stream got; None if it ended before anything could be sent."""
    try:
        return stream.result
    except RuntimeError:
        return None


def _record(
    assignment: Assignment,
    worker: str,
    began_ns: int,
    chunks: list[Chunk],
    result: GenerationResult | None,
    error: errors.ClientError | None,
) -> RequestRecord:
    sent_ns = result.timings.sent_ns if result else began_ns
    acceptance = result.acceptance if result else None
    cache = result.kv_cache if result else None
    return RequestRecord(
        cell=assignment.cell,
        arm=assignment.arm,
        load=assignment.load,
        round=assignment.round,
        role=assignment.role,
        index=assignment.index,
        prompt_id=assignment.prompt.id,
        category=assignment.prompt.category,
        due_ns=assignment.due_ns,
        worker=worker,
        sent_ns=epoch_ns(sent_ns),
        ended_ns=epoch_ns(time.perf_counter_ns()),
        chunk_offsets_ns=tuple(chunk.received_ns - sent_ns for chunk in chunks),
        chunk_tokens=_tokens(chunks),
        input_tokens=result.num_input_tokens if result else None,
        output_tokens=result.num_output_tokens if result else None,
        draft_tokens=acceptance.draft_tokens if acceptance else None,
        accepted_tokens=acceptance.accepted_tokens if acceptance else None,
        reused_blocks=cache.reused_blocks if cache else None,
        blocks=cache.total_blocks if cache else None,
        finish_reason=result.finish_reason if result else None,
        server=_server_times(result),
        error=type(error).__name__ if error else None,
        error_message=str(error) if error else None,
    )


def _tokens(chunks: list[Chunk]) -> tuple[int, ...] | None:
    counts = [len(chunk.tokens) for chunk in chunks if chunk.tokens is not None]
    return tuple(counts) if len(counts) == len(chunks) else None


def _server_times(result: GenerationResult | None) -> ServerTimes | None:
    if result is None or result.timings.arrival_ns is None:
        return None
    times = result.timings
    return ServerTimes(times.arrival_ns, times.first_scheduled_ns, times.first_token_ns, times.last_token_ns)
