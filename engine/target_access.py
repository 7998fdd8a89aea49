"""The target, lent to speculators that draft with it; see `speculators.target_access`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from engine.runner import Runner, SequenceInput
from engine.running import RunningRequest
from speculators.target_access import TargetCopy, TargetInput


class RunnerAccess:
    """A `TargetAccess` on a runner, for the requests that run.

    Args:
        runner: runs the target.
        running: the requests, by id.

    Attributes:
        positions: that the target knows.
    """

    def __init__(self, runner: Runner, running: Mapping[int, RunningRequest]) -> None:
        self.block_size, self.vocab_size = runner.block_size, runner.vocab_size
        self.positions = runner.max_sequence_length
        self._runner, self._running = runner, running
        self._lent = False

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While drafts are made. At other times what the last step has left in the runner is still needed."""
        self._lent = True
        try:
            yield
        finally:
            self._lent = False

    def computed(self, request_id: int) -> int:
        """See `TargetAccess`."""
        return self._running[request_id].cached

    def run(self, batch: Sequence[TargetInput], copy: TargetCopy | None = None) -> NDArray[np.float32]:
        """See `TargetAccess`."""
        if not self._lent:
            raise RuntimeError(
                "the target is lent to speculators while they propose or catch up, not otherwise"
            )
        return (copy or self._runner).forward([self._sequence(item) for item in batch])

    def _sequence(self, item: TargetInput) -> SequenceInput:
        owner, size = self._running[item.request_id], self.block_size
        places = range(len(owner.blocks)) if item.places is None else item.places
        if not all(0 <= place < len(owner.blocks) for place in places):
            raise ValueError(
                f"request {item.request_id} has blocks 0 to {len(owner.blocks) - 1}, asked for {list(places)}"
            )
        for row in range(item.past, item.past + len(item.tokens)):
            if row // size >= len(places):
                raise ValueError(f"{len(places)} blocks have no row {row} for request {item.request_id}")
            own = places[row // size] * size + row % size
            if own < owner.cached:
                raise ValueError(
                    f"row {own} of request {item.request_id} would be overwritten; drafts go behind its {owner.cached} "
                    "rows"
                )
        return SequenceInput(
            item.tokens,
            item.past,
            [owner.blocks[place] for place in places],
            logits_from=item.outputs_from,
            position=item.position,
        )
