"""The kit's attention kernel: right by float64, and the same bits whichever way a row is computed."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.native.library import (
    CachePrecision,
    NativeCache,
    NativeError,
    StepRequest,
    instructions,
    load_library,
)
from tests.engine.native.contexts import BLOCK_ROWS, LAYER, SHAPES, Context, Heads, path_to

if instructions() is None:
    pytest.skip("the kernel is not compiled for this machine", allow_module_level=True)

# Rows of the context that stands, as a share of the largest value; int8 has 255 steps for rows, queries and weights.
TOLERANCES: dict[CachePrecision, float] = {"fp32": 3e-6, "fp16": 3e-3, "int8": 4e-2}
PRECISIONS = list(TOLERANCES)
CHUNKED = (100, 1, 2, 250, 7, 240)
LENGTH = sum(CHUNKED)
TREE = (-1, 0, 0, 1, 1, 2, 3, 3, 5, 6, 9, 10, 11)


def use(name: str) -> bool:
    library: Any = load_library()
    return bool(library.drafthouse_use_instructions(name.encode()))


@pytest.fixture(params=["avx512", "avx2"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    best = instructions()
    if not use(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    use(str(best))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_agrees_with_the_definition(instruction_set: str, heads: Heads, precision: CachePrecision) -> None:
    context = Context(heads, LENGTH, seed=1)
    found = context.read(context.cache(precision), CHUNKED, threads=2)
    for row in (0, 1, 31, 32, 33, 255, 256, 257, 400, LENGTH - 1):
        expected = context.expected(row, range(row + 1))
        worst = np.abs(found[row] - expected).max()
        assert worst < TOLERANCES[precision] * max(1.0, np.abs(expected).max()), f"row {row}"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_instruction_sets_agree_bit_for_bit(precision: CachePrecision) -> None:
    best = str(instructions())
    found = []
    for name in ("avx512", "avx2"):
        if use(name):
            context = Context(Heads(9, 3, 64), LENGTH, seed=2)
            found.append(context.read(context.cache(precision), CHUNKED))
    use(best)
    assert all(np.array_equal(one, found[0]) for one in found)


def sizes_of(total: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut `total` rows into steps."""
    cuts = st.sets(st.integers(1, total - 1), max_size=12)
    return cuts.map(lambda at: np.diff([0, *sorted(at), total]).tolist())


@settings(max_examples=30)
@given(data=st.data())
def test_bits_do_not_depend_on_steps_threads_or_blocks(data: st.DataObject) -> None:
    heads = data.draw(st.sampled_from(SHAPES))
    precision: CachePrecision = data.draw(st.sampled_from(PRECISIONS))
    rows = data.draw(st.integers(2, 600))
    one, other = Context(heads, rows, seed=3), Context(heads, rows, seed=3)
    other.blocks = data.draw(st.permutations(range(64)))[: len(one.blocks)]
    expected = one.read(one.cache(precision), [rows])
    found = other.read(other.cache(precision), data.draw(sizes_of(rows)), data.draw(st.integers(1, 5)))
    np.testing.assert_array_equal(found, expected)


@st.composite
def trees(draw: st.DrawFn) -> list[int]:
    rows = draw(st.integers(1, 40))
    return [-1, *(draw(st.integers(-1, row - 1)) for row in range(1, rows))]


@settings(max_examples=30)
@given(parents=trees(), past=st.integers(0, 300), data=st.data())
def test_a_row_of_a_tree_equals_the_end_of_its_path(
    parents: list[int], past: int, data: st.DataObject
) -> None:
    heads = data.draw(st.sampled_from(SHAPES))
    precision: CachePrecision = data.draw(st.sampled_from(PRECISIONS))
    context = Context(heads, past + len(parents), seed=4)
    cache = context.cache(precision)
    if past:
        context.step(cache, range(past), 0)
    new = range(past, past + len(parents))
    found = context.step(cache, new, past, parents=parents, threads=data.draw(st.integers(1, 3)))
    row = data.draw(st.integers(0, len(parents) - 1))
    path = [past + node for node in path_to(parents, row)]
    alone = context.cache(precision)
    if past:
        context.step(alone, range(past), 0)
    for depth, node in enumerate(path):
        last = context.step(alone, [node], past + depth)
    np.testing.assert_array_equal(found[row], last[0])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_moved_rows_serve_as_if_they_had_been_written_there(precision: CachePrecision) -> None:
    context = Context(Heads(9, 3, 64), 250 + len(TREE) + 1, seed=5)
    past, last = 250, 250 + len(TREE)
    path = path_to(TREE, 12)
    committed, plain = context.cache(precision), context.cache(precision)
    for cache in (committed, plain):
        context.step(cache, range(past), 0)
    context.step(committed, range(past, last), past, parents=TREE)

    def place(row: int) -> tuple[int, int]:
        return context.blocks[row // BLOCK_ROWS], row % BLOCK_ROWS

    moves = [(*place(past + node), *place(past + row)) for row, node in enumerate(path) if node != row]
    committed.move_rows(moves)
    context.step(plain, [past + node for node in path], past)
    after = past + len(path)
    np.testing.assert_array_equal(context.step(committed, [last], after), context.step(plain, [last], after))


def test_a_batch_equals_its_requests_alone() -> None:
    contexts = [Context(Heads(9, 3, 64), rows, seed=rows) for rows in (40, 300, 7)]
    for index, context in enumerate(contexts):
        context.blocks = list(range(20 * index, 20 * index + len(context.blocks)))
    cache = contexts[0].cache("int8")
    alone = [context.step(contexts[0].cache("int8"), range(context.rows), 0) for context in contexts]
    parts = [(30, 10), (299, 1), (0, 7)]  # past and new rows
    for context, (past, _) in zip(contexts, parts, strict=True):
        if past:
            context.step(cache, range(past), 0)
    cache.begin_step(
        [StepRequest(new, past, context.blocks) for context, (past, new) in zip(contexts, parts, strict=True)]
    )
    new_rows = [
        np.concatenate(
            [getattr(context, name)[past:] for context, (past, _) in zip(contexts, parts, strict=True)]
        )
        for name in ("queries", "keys", "values")
    ]
    found = cache.attend(LAYER, *new_rows, heads=9, scale=contexts[0].heads.scale, threads=2)
    expected = np.concatenate([rows[past:] for rows, (past, _) in zip(alone, parts, strict=True)])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_left_out_are_not_seen(precision: CachePrecision) -> None:
    """A window over the context, as a drafter has it: its first block and its last ones."""
    context = Context(Heads(9, 3, 64), 321, seed=6)
    cache = context.cache(precision)
    context.step(cache, range(320), 0)
    whole = list(context.blocks)
    kept = [0, 8, 9, 10]
    context.blocks = [whole[block] for block in kept]
    (found,) = context.step(cache, [320], 96)
    seen = [*range(32), *range(256, 321)]
    expected = context.expected(320, seen)
    assert np.abs(found - expected).max() < TOLERANCES[precision]


def test_blocks_are_weighed() -> None:
    context = Context(Heads(9, 3, 64), 321, seed=7)
    cache = context.cache("fp32")
    context.step(cache, range(319), 0)
    context.step(cache, [319, 320], 319, weighed=True)
    found = cache.block_weights()
    expected = np.zeros(11)
    for row in (319, 320):
        seen = range(row + 1)
        np.add.at(expected, np.arange(len(seen)) // BLOCK_ROWS, context.weights(row, seen).sum(axis=0))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert found.sum() == pytest.approx(2 * 9, rel=1e-5)


def test_a_kernel_that_errs_is_noticed() -> None:
    """The negative control: rows that are read from another place change the bits."""
    context = Context(Heads(9, 3, 64), 70, seed=8)
    cache = context.cache("int8")
    expected = context.step(cache, range(70), 0)[-1]
    context.blocks[:2] = reversed(context.blocks[:2])  # the same rows in another order
    again = context.step(cache, [69], 69)[0]
    assert not np.array_equal(again, expected)


@pytest.fixture
def cache() -> NativeCache:
    return Context(Heads(2, 1, 16), 1, seed=0).cache("fp32")


HOSTILE: list[tuple[list[StepRequest], str]] = [
    ([], "0 requests"),
    ([StepRequest(0, 0, (1,))], "0 rows"),
    ([StepRequest(1, 0, ())], "0 blocks"),
    ([StepRequest(1, 0, (64,))], "block 64 is named; the cache has 0 to 63"),
    ([StepRequest(1, 0, (-1,))], "block -1 is named"),
    ([StepRequest(1, -1, (1,))], "-1 past"),
    ([StepRequest(2, 31, (1,))], "its blocks hold 32"),
    ([StepRequest(1, 2**31 - 1, (1,))], "its blocks hold 32"),
    ([StepRequest(2, 31, (1, 1))], "named more than once"),
    ([StepRequest(1, 0, (1,)), StepRequest(1, 0, (1,))], "named more than once"),
    ([StepRequest(2, 0, (1,), (-1, 1))], "follows row 1; it can follow -1 to 0"),
    ([StepRequest(2, 0, (1,), (-2, 0))], "follows row -2"),
    ([StepRequest(2, 0, (1,), (-1,))], "1 parents are given for 2 rows"),
    ([StepRequest(33, 0, (1, 2), weighed=True)], "at most"),
]


@pytest.mark.parametrize(("requests", "told"), HOSTILE, ids=[told for _, told in HOSTILE])
def test_a_hostile_step_is_refused(cache: NativeCache, requests: Sequence[StepRequest], told: str) -> None:
    before = cache.memory.copy()
    with pytest.raises(NativeError, match=told):
        cache.begin_step(requests)
    assert np.array_equal(cache.memory, before)


def test_after_a_refused_step_the_next_one_is_right(cache: NativeCache) -> None:
    context = Context(Heads(2, 1, 16), 40, seed=9)
    with pytest.raises(NativeError, match="named more than once"):
        cache.begin_step([StepRequest(1, 0, (1,)), StepRequest(1, 0, (1,))])
    found = context.step(cache, range(40), 0)
    assert np.abs(found[39] - context.expected(39, range(40))).max() < TOLERANCES["fp32"]


def test_attention_that_does_not_fit_the_cache_is_refused(cache: NativeCache) -> None:
    context = Context(Heads(3, 1, 16), 1, seed=0)
    for layer, heads, told in ((2, 2, "layer 2"), (-1, 2, "layer -1"), (0, 0, "0 heads")):
        cache.begin_step([StepRequest(1, 0, (1,))])
        with pytest.raises(NativeError, match=told):
            cache.attend(layer, context.queries, context.keys, context.values, heads=heads, scale=1.0)


def test_a_closed_cache_is_refused() -> None:
    library: Any = load_library()
    wrong = library.drafthouse_move_rows(ctypes.c_int64(10**12), ctypes.c_int64(0), None)
    assert b"no cache" in wrong
