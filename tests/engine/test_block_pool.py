"""The allocator of cache blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.kv_cache import BlockPool


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_blocks_for_rows(rows: int, blocks: int) -> None:
    pool = BlockPool(10, 32)
    assert pool.blocks_for(rows) == blocks
    held = pool.allocate(rows)
    assert held is not None and len(held) == blocks
    assert pool.free == 10 - blocks


def test_a_request_gets_all_its_blocks_or_none() -> None:
    pool = BlockPool(3, 32)
    assert pool.allocate(97) is None
    assert pool.free == 3
    assert pool.allocate(96) is not None
    assert pool.allocate(1) is None


def test_last_in_first_out() -> None:
    pool = BlockPool(8, 32)
    first, second = pool.allocate(64), pool.allocate(96)
    assert (first, second) == ([0, 1], [2, 3, 4])
    pool.release([2, 3, 4])
    pool.release([0, 1])
    assert pool.allocate(160) == [0, 1, 2, 3, 4]


def test_a_block_cannot_be_released_twice() -> None:
    pool = BlockPool(4, 32)
    held = pool.allocate(64)
    assert held is not None
    pool.release(held)
    with pytest.raises(ValueError, match=r"blocks \[0, 1\] are released twice"):
        pool.release(held)
    assert pool.free == 4


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 200)), max_size=60))
def test_no_block_is_held_twice_and_none_is_lost(calls: list[tuple[bool, int]]) -> None:
    pool = BlockPool(12, 32)
    held: list[list[int]] = []
    for allocate, number in calls:
        if allocate and (blocks := pool.allocate(number)) is not None:
            held.append(blocks)
        elif not allocate and held:
            pool.release(held.pop(number % len(held)))
        taken = [block for blocks in held for block in blocks]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(range(12))
        assert pool.free == 12 - len(taken)
