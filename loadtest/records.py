"""Raw records: one JSON line for each request, and one JSON file for each finished cell.

A request's times are integers in nanoseconds: `sent_ns` and `due_ns` since the Unix epoch, so that records of
several processes (and of several machines with synchronised clocks) can be laid side by side, everything
later as an offset from `sent_ns`, measured with the monotonic clock.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from deployments.errors import DrafthouseError
from loadtest.plan import Role

# perf_counter_ns is steady but its zero is arbitrary; one anchor per process ties it to the epoch.
_EPOCH_OFFSET_NS = time.time_ns() - time.perf_counter_ns()


def epoch_ns(perf_counter_ns: int) -> int:
    """A :func:`time.perf_counter_ns` of this process as nanoseconds since the Unix epoch."""
    return perf_counter_ns + _EPOCH_OFFSET_NS


class RecordError(DrafthouseError, ValueError):
    """A record that cannot be read; the message names file and line."""


@dataclass(frozen=True, slots=True)
class ServerTimes:
    """The server's own clock readings of one request, in nanoseconds; None where it does not report one."""

    arrival_ns: int | None
    first_scheduled_ns: int | None
    first_token_ns: int | None
    last_token_ns: int | None


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request, as the client saw it."""

    # What was asked, written by whoever hands out the work.
    cell: str
    arm: str
    load: str
    round: int
    role: Role
    index: int
    prompt_id: str
    category: str
    due_ns: int | None
    """Open loop: when the request was due; closed loop: None."""

    # What came back, written by the user that sent it.
    worker: str
    sent_ns: int
    ended_ns: int
    """When the request was over for the client: after the final response, an error, or a cancellation."""
    chunk_offsets_ns: tuple[int, ...]
    """When each piece of output arrived, after `sent_ns`."""
    chunk_tokens: tuple[int, ...] | None
    """Tokens in each piece; None where the server does not return token ids."""
    input_tokens: int | None
    output_tokens: int | None
    draft_tokens: int | None
    accepted_tokens: int | None
    reused_blocks: int | None
    """Blocks of the server's KV cache that were found filled; None where the server does not tell."""
    blocks: int | None
    """All blocks that it held."""
    finish_reason: str | None
    server: ServerTimes | None
    error: str | None
    """Class of the error, e.g. ``QueueFull``; None if there was none."""
    error_message: str | None

    @property
    def failed(self) -> bool:
        """Whether the request ended in an error.

        A filler that was cancelled at the end of its cell did not fail.
        """
        return self.error is not None

    @property
    def completed(self) -> bool:
        """Whether the request ran to its own end, with output or with an answer of no tokens."""
        answered = bool(self.chunk_offsets_ns) or self.output_tokens == 0
        return answered and not self.failed and self.finish_reason != "cancelled"

    def to_json(self) -> str:
        """One line of JSON, without the line end."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> RequestRecord:
        """The record in one line.

        Raises:
            ValueError, TypeError, KeyError: the line is not such a record.
        """
        fields: dict[str, Any] = json.loads(line)
        for name in ("chunk_offsets_ns", "chunk_tokens"):
            fields[name] = None if fields[name] is None else tuple(fields[name])
        fields["server"] = None if fields["server"] is None else ServerTimes(**fields["server"])
        return cls(**fields)


class RecordWriter:
    """Appends records to a file; each is on disk's doorstep (flushed) when :meth:`write` returns."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: TextIO = path.open("a", encoding="utf-8")

    def write(self, record: RequestRecord) -> None:
        """Append one record."""
        self._file.write(record.to_json() + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_records(path: Path) -> Iterator[RequestRecord]:
    """The records of a file, in its order.

    Raises:
        RecordError: a line is not a record.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            yield _parse(line, f"{path}:{number}")


def _parse(line: str, where: str) -> RequestRecord:
    try:
        return RequestRecord.from_json(line)
    except (ValueError, TypeError, KeyError) as error:
        raise RecordError(f"{where}: not a request record: {error}") from None


@dataclass(frozen=True, slots=True)
class CellRecord:
    """What one finished cell was, and what Triton's counters did meanwhile."""

    name: str
    arm: str
    load: str
    round: int
    opened_ns: int
    closed_ns: int
    requests: int
    """Requests sent, whatever their role; so many records the cell has."""
    drained: bool
    """Whether no request was running on the server any more; True too if it reports no such gauge."""
    drafted_by_position: Mapping[int, int] | None
    """Draft tokens proposed at each position (1 = first) between opening and closing.

    None without metrics.
    """
    accepted_by_position: Mapping[int, int] | None

    def to_json(self) -> str:
        """A JSON document."""
        return json.dumps(dataclasses.asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> CellRecord:
        """The cell in a JSON document."""
        fields: dict[str, Any] = json.loads(text)
        for name in ("drafted_by_position", "accepted_by_position"):
            if fields[name] is not None:
                fields[name] = {int(position): count for position, count in fields[name].items()}
        return cls(**fields)
