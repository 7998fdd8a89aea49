"""Acceptance length and rate of a set of requests, and acceptance by position from Triton's counters.

*Acceptance length*: tokens emitted per target step, pooled over all steps as Spec-Bench does. A request of n
tokens of which `a` were accepted drafts took ``n - a`` steps, the one that ends the prefill included; a last
step cut by the token limit counts as a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadtest.measures import output_tokens
from loadtest.records import CellRecord, RequestRecord
from loadtest.schema import PositionReport


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
