"""What a drafter's calls cost: drafts for requests that no engine runs, behind contexts of one length.

Example::

    requests = MeasuredDrafts(runner, drafter, width=576, blocks=20, batch=8, context=512)
    requests.begin(read=511)                        # all but the last row counts as read
    milliseconds, drafted = requests.draft(nodes=3)
    requests.finish()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from engine.runner import Runner, SequenceInput
from speculators.base import Speculator
from speculators.graphs import DrafterRows
from speculators.outcome import StepOutcome
from speculators.target_access import TargetCopy, TargetInput


class _Target:
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


class MeasuredDrafts:
    """Requests of a batch.

    Args:
        runner: the target, lent to a speculator that drafts with it.
        speculator: what drafts; it is left bound to what is measured.
        width: of hidden states.
        blocks: cache blocks of each request.
        batch: requests.
        context: tokens of each.
        clock: seconds.
    """

    def __init__(
        self,
        runner: Runner,
        speculator: Speculator,
        *,
        width: int,
        blocks: int,
        batch: int,
        context: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._speculator, self._width, self._clock = speculator, width, clock
        self._blocks, self._batch, self._context = blocks, batch, context
        self._random = np.random.default_rng(0)
        self._rows: dict[int, int] = {}
        if speculator.requirements.drafts_with_target:
            speculator.bind(_Target(runner, blocks, self._rows))

    def begin(self, read: int) -> None:
        """Start each request with the first `read` rows of its prompt in place, and give the states of the others."""
        for request in range(self._batch):
            rows = DrafterRows(range(request * self._blocks, (request + 1) * self._blocks), read)
            self._rows[request] = self._context
            self._speculator.start(request, [7 + row % 50 for row in range(self._context)], rows)
            self._speculator.observe(request, self._outcome([7], self._context - read))
        while any(self._speculator.catch_up(range(self._batch), self._context)):
            pass
        # Lookups take in a text when they are asked about it, which is no part of a draft.
        self._speculator.propose(range(self._batch), [0] * self._batch)

    def finish(self) -> None:
        """End them."""
        for request in range(self._batch):
            self._speculator.finish(request)

    def draft(self, nodes: int) -> tuple[float, int]:
        """Milliseconds of a draft of at most `nodes` nodes for each request, and the nodes of the longest of them."""
        started = self._clock()
        trees = self._speculator.propose(range(self._batch), [nodes] * self._batch)
        elapsed = (self._clock() - started) * 1e3
        for request, tree in enumerate(trees):
            emitted = [*tree.tokens[:1], 9]  # one accepted token and the target's own
            self._rows[request] += len(emitted)
            self._speculator.observe(request, self._outcome(emitted, len(emitted)))
        return elapsed, max(tree.drafted for tree in trees)

    def _outcome(self, emitted: Sequence[int], rows: int) -> StepOutcome:
        layers, shape = self._speculator.requirements.hidden_layers, (rows, self._width)
        hidden = {layer: self._random.standard_normal(shape, np.float32) for layer in layers}
        return StepOutcome(emitted, kept=range(rows), hidden=hidden)


@contextmanager
def whole_drafts(speculator: Speculator) -> Iterator[None]:
    """Have it end no draft where it is unsure, as it always is behind contexts that say nothing."""
    ends, speculator.ends_drafts = speculator.ends_drafts, False
    try:
        yield
    finally:
        speculator.ends_drafts = ends
