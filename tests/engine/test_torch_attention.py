"""PyTorch's paged attention: every row sees what it should, and the cache is read once for all rows of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runner import BLOCK_SIZE, SequenceInput
from tests.engine.test_runner_trees import DRAWN
from tests.engine.torch_steps import FILLED, Attended, Shape

pytestmark = pytest.mark.torch


@st.composite
def steps(draw: st.DrawFn, most_rows: int = 40) -> list[SequenceInput]:
    """Chains, trees and prompts of several requests, each in blocks of its own, in any order."""
    free = draw(st.permutations(range(FILLED)))
    batch: list[SequenceInput] = []
    for _ in range(draw(st.integers(1, 4))):
        rows, past = draw(st.integers(1, most_rows)), draw(st.integers(0, 100))
        count = -(-(past + rows) // BLOCK_SIZE)
        blocks, free = free[:count], free[count:]
        parents = None
        if draw(st.booleans()):
            parents = [0, *(draw(st.integers(0, token - 1)) for token in range(1, rows))]
        position = draw(st.sampled_from([None, 500]))
        batch.append(
            SequenceInput(
                list(range(rows)),
                past,
                blocks,
                is_prompt=parents is None and draw(st.booleans()),
                parents=parents,
                position=position,
            )
        )
    return batch


@settings(DRAWN, max_examples=40)
@given(batch=steps(), window=st.sampled_from([0, 0, 1, 9, 40]), seed=st.integers(0, 5))
def test_every_row_sees_its_past_and_its_ancestors(batch: Any, window: int, seed: int) -> None:
    attended = Attended(batch, Shape(window=window), seed)
    np.testing.assert_allclose(attended.found(), attended.expected(), atol=1e-5)


def rows_read(rows: int) -> int:
    """Cache rows that a step of two requests reads, each with so many new rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    batch = [SequenceInput(range(rows), 90, range(4 * place, 4 * place + 4)) for place in range(2)]
    attended = Attended(batch, Shape())
    cache = attended.caches.rows.untyped_storage().data_ptr()
    read: list[int] = []

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            reads = func.overloadpacket.__name__ in ("index", "index_select", "gather")
            if reads and args[0].untyped_storage().data_ptr() == cache:
                read.append(found.shape[0] * found.shape[1])
            return found

    with Reads():
        attended.found()
    return sum(read)


def test_the_cache_is_read_once_for_all_rows_of_a_request() -> None:
    assert (
        rows_read(1) == rows_read(8) == rows_read(32) == 2 * 2 * 4 * BLOCK_SIZE
    )  # keys and values of two requests
