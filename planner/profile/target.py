"""The target as drafters borrow it, for the requests of a measurement, which no engine runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.runner import Runner, SequenceInput
from speculators.target_access import TargetCopy, TargetInput


class MeasuredTarget:
    """A `TargetAccess`: request i lies in the i-th part of the runner's cache.

    Args:
        runner: runs the target.
        blocks: cache blocks of each request.
        rows: that the target has computed of each, by request.
    """

    def __init__(self, runner: Runner, blocks: int, rows: dict[int, int]) -> None:
        self.block_size, self.vocab_size = runner.block_size, runner.vocab_size
        self._runner, self._blocks, self._rows = runner, blocks, rows

    def computed(self, request_id: int) -> int:
        """See `TargetAccess`."""
        return self._rows[request_id]

    def run(self, batch: Sequence[TargetInput], copy: TargetCopy | None = None) -> NDArray[np.float32]:
        """See `TargetAccess`."""
        return (copy or self._runner).forward([self._sequence(item) for item in batch])

    def _sequence(self, item: TargetInput) -> SequenceInput:
        first = item.request_id * self._blocks
        places = range(self._blocks) if item.places is None else item.places
        return SequenceInput(
            item.tokens,
            item.past,
            [first + place for place in places],
            logits_from=item.outputs_from,
            position=item.position,
        )
