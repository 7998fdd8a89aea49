"""What a controller has decided and what came of it, by batch: for `/metrics` and for tests."""

from __future__ import annotations

from dataclasses import dataclass, field

NONE = "none"


@dataclass(slots=True)
class LevelCounts:
    """Counters of the steps of one level, a range of numbers of requests that decode.

    Attributes:
        steps: by deployment that drafted, "none" where nothing was verified.
        nodes: that were verified, likewise.
        expected_tokens, emitted_tokens: of the steps in which drafts were asked for.
        planned_ms, expected_ms, measured_ms: by the plan's table, by the corrected one, and by the clock, of those of
            them in which no prompt was read.
    """

    steps: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    expected_tokens: float = 0.0
    emitted_tokens: int = 0
    planned_ms: float = 0.0
    expected_ms: float = 0.0
    measured_ms: float = 0.0


class Decisions:
    """Counts by batch: 1, 2, 4, ... requests that decode, each up to the next.

    Args:
        names: of what may draft.
        most: requests at once.
    """

    def __init__(self, names: list[str], most: int) -> None:
        self.names = [NONE, *names]
        self.levels: dict[int, LevelCounts] = {}
        level = 1
        while level < 2 * most:
            counts = LevelCounts(dict.fromkeys(self.names, 0), dict.fromkeys(self.names, 0))
            self.levels[level] = counts
            level *= 2
        self._counts = [self.levels[1 << max(0, count - 1).bit_length()] for count in range(level // 2 + 1)]

    def at(self, decoding: int) -> LevelCounts:
        """Those of the smallest level that holds `decoding` requests."""
        return self._counts[min(decoding, len(self._counts) - 1)]
