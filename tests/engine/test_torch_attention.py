"""PyTorch's paged attention: every row sees what it should, and the cache is read once for all rows of a request."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runner import BLOCK_SIZE, SequenceInput
from tests.engine.test_runner_trees import DRAWN
from tests.tiny import NUM_BLOCKS

torch = pytest.importorskip("torch")

from engine.torch_attention import StepAttention  # noqa: E402
from engine.torch_graphs import best_device  # noqa: E402
from planner.bench.cuda.reference import AttentionCase, HeadShape  # noqa: E402

pytestmark = pytest.mark.torch


def case(batch: Any, shape: HeadShape, seed: int = 0) -> AttentionCase:
    """In fp32; rows that nobody has written, or may read, are NaN."""
    return AttentionCase(batch, shape, NUM_BLOCKS, best_device(), torch.float32, seed)


def error(attended: AttentionCase, *, kernel: bool) -> float:
    return attended.error(partial(StepAttention, kernel=kernel))


@st.composite
def steps(draw: st.DrawFn, most_rows: int = 40) -> list[SequenceInput]:
    """Chains, trees and prompts of several requests, each in blocks of its own, in any order."""
    free = draw(st.permutations(range(NUM_BLOCKS)))
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


SHAPES = st.builds(
    HeadShape,
    heads=st.sampled_from([1, 2]),
    share=st.sampled_from([1, 3, 8]),
    width=st.sampled_from([16, 64]),
    window=st.sampled_from([0, 0, 1, 9, 40]),
)


@settings(DRAWN, max_examples=40)
@given(batch=steps(), shape=SHAPES, seed=st.integers(0, 5))
def test_every_row_sees_its_past_and_its_ancestors(batch: Any, shape: HeadShape, seed: int) -> None:
    attended = case(batch, shape, seed)
    assert error(attended, kernel=False) < 1e-5


@settings(DRAWN, max_examples=12)
@given(batch=steps(most_rows=16), shape=SHAPES, seed=st.integers(0, 5))
def test_the_kernel_finds_the_same(batch: Any, shape: HeadShape, seed: int) -> None:
    """Compiled where there is a CUDA device, elsewhere in Triton's interpreter."""
    pytest.importorskip("triton")
    attended = case(batch, shape, seed)
    assert error(attended, kernel=True) < 1e-5


def test_the_kernel_joins_the_chunks_of_long_contexts() -> None:
    pytest.importorskip("triton")
    batch = [
        SequenceInput(range(6), 700, range(30), parents=[0, 0, 0, 1, 1, 3]),
        SequenceInput([0], 3, [40]),
        SequenceInput(range(3), 500, range(42, 58), position=9000),
    ]
    for window in (0, 600):
        attended = case(batch, HeadShape(window=window))
        assert error(attended, kernel=True) < 1e-5


def test_the_kernel_compiles_for_devices_that_are_not_here() -> None:
    """bf16, the tiles of models with 4 query heads of 128 for a key head; no registers go to memory."""
    pytest.importorskip("triton")
    from tests.engine.compiled_kernels import local_memory

    assert local_memory(capability=80, tile=32, width=128) == [0, 0]


def rows_read(rows: int) -> int:
    """Cache rows that a step of two requests reads, each with `rows` new rows."""
    from torch.utils._python_dispatch import TorchDispatchMode

    batch = [SequenceInput(range(rows), 90, range(4 * place, 4 * place + 4)) for place in range(2)]
    attended = case(batch, HeadShape())
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
        attended.found(partial(StepAttention, kernel=False))
    return sum(read)


def test_the_cache_is_read_once_for_all_rows_of_a_request() -> None:
    assert (
        rows_read(1) == rows_read(8) == rows_read(32) == 2 * 2 * 4 * BLOCK_SIZE
    )  # keys and values of two requests
