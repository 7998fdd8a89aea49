"""Where logits lie on a device, a step of greedy requests asks for the greatest of each row alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.request import GenerationRequest, SamplingParams
from engine.runner import BestLogits, SequenceInput
from speculators.registry import create
from tests.engine.driving import make_engine, run
from tests.engine.tables import VOCABULARY, TableRunner

GREEDY = [GenerationRequest(tuple(range(place, place + 9)), 30) for place in range(4)]


class Watched(TableRunner):
    """Remembers of how many rows all logits were asked for."""

    def __init__(self, *, gives_best: bool) -> None:
        super().__init__(gives_best=gives_best)
        self.rows = 0

    def forward(self, batch: Sequence[SequenceInput]) -> NDArray[np.float32]:
        logits = super().forward(batch)
        self.rows += len(logits)
        return logits

    def forward_best(self, batch: Sequence[SequenceInput]) -> BestLogits:
        return BestLogits.of(super().forward(batch))


def outcomes(requests: Sequence[GenerationRequest], *, gives_best: bool) -> tuple[list[Any], int]:
    runner = Watched(gives_best=gives_best)
    found = run(make_engine(runner, create("anpd"), max_batch_size=4, max_sequence_length=128), requests)
    return [(each.tokens, each.log_probs) for each in found], runner.rows


def test_greedy_requests_get_the_same_tokens() -> None:
    expected, every = outcomes(GREEDY, gives_best=False)
    found, fetched = outcomes(GREEDY, gives_best=True)
    assert found == expected
    assert every > 0 and fetched == 0


@pytest.mark.parametrize(
    "other",
    [
        GenerationRequest((1, 2, 3), 5, SamplingParams(temperature=0.8, seed=3)),
        GenerationRequest((1, 2, 3), 5, return_log_probs=True),
        GenerationRequest((1, 2, 3), 5, min_tokens=5, end_ids=frozenset(range(VOCABULARY - 1))),
    ],
    ids=["sampling", "log-probabilities", "no early end"],
)
def test_a_step_with_a_request_that_asks_for_more_has_all_logits(other: GenerationRequest) -> None:
    expected, every = outcomes([*GREEDY[:2], other], gives_best=False)
    found, fetched = outcomes([*GREEDY[:2], other], gives_best=True)
    assert found == expected
    assert 0 < fetched < every
