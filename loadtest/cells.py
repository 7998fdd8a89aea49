"""A finished cell with what its measured window gave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.records import CellRecord, RequestRecord
from loadtest.throughput import measured_window, tokens_in_window


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


def measured_requests(cells: Iterable[MeasuredCell]) -> list[RequestRecord]:
    """The measured requests of some cells, failed ones included."""
    return [record for cell in cells for record in cell.measured]
