"""Cost tables: what was measured where it was, monotone, between its neighbours elsewhere, and nothing beyond."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.control.errors import ProfileError
from engine.control.table import CostTable
from tests.planner.synthetic_profile import BATCHES, CONTEXTS, ROUNDS, SIZES, points

ALL = np.arange(ROUNDS)[None]


def linear(context: int, batch: int, size: int) -> float:
    return 5 + batch * size + batch * context / 100


def test_measured_points_are_kept_where_their_order_holds() -> None:
    table = CostTable(points(linear), ALL)
    for context, batch in product(CONTEXTS, BATCHES):
        found = table.milliseconds(context, batch, SIZES)[0]
        assert found == pytest.approx([linear(context, batch, size) for size in SIZES])


def test_between_points_it_is_linear() -> None:
    table = CostTable(points(linear), ALL)
    assert table.milliseconds(272, 1, [3])[0, 0] == pytest.approx(5 + 3 + 2.72)
    assert table.milliseconds(32, 3, [4])[0, 0] == pytest.approx(5 + 12 + 3 * 0.32)


def test_steps_cost_what_the_graph_costs_that_they_are_padded_to() -> None:
    """A step of three tokens runs the graph of four; beyond the largest graph each token counts."""
    buckets = (2, 4, 8, 16)

    def staircase(context: int, batch: int, size: int) -> float:
        rows = batch * size
        return float(next((bucket for bucket in buckets if rows <= bucket), rows))

    table = CostTable(points(staircase), ALL, buckets)
    assert table.milliseconds(32, 1, [1, 2, 3, 4, 5, 8, 9])[0].tolist() == [2, 2, 4, 4, 8, 8, 16]
    assert table.milliseconds(32, 2, [1, 1.5, 2, 3])[0].tolist() == [2, 4, 4, 8]
    assert table.milliseconds(32, 8, [2, 3])[0].tolist() == [16, 24]


def test_a_long_draft_for_one_request_may_take_longer_than_a_short_one_for_many() -> None:
    def levels(context: int, batch: int, size: int) -> float:
        return 2.0 * size

    table = CostTable(points(levels), ALL, of_drafts=True)
    for batch in (1, 3, 8):
        assert table.milliseconds(32, batch, [1, 3, 8])[0].tolist() == [2, 6, 16]
    as_rows = CostTable(points(levels), ALL)
    assert as_rows.milliseconds(32, 8, [1])[0, 0] > 2 and as_rows.milliseconds(32, 1, [8])[0, 0] < 16


@settings(max_examples=40)
@given(
    st.lists(
        st.floats(0.1, 100),
        min_size=len(CONTEXTS) * len(BATCHES) * len(SIZES),
        max_size=len(CONTEXTS) * len(BATCHES) * len(SIZES),
    ),
    st.booleans(),
)
def test_whatever_was_measured_more_is_never_cheaper(noise: list[float], filled: bool) -> None:
    values = iter(noise)
    buckets = (2, 4, 6, 8, 12, 16) if filled else ()
    table = CostTable(points(lambda *_: next(values)), ALL, buckets)
    sizes = np.linspace(1, 16, 31)
    by_batch = [table.milliseconds(100, batch, sizes)[0] for batch in (1, 1.5, 2, 3, 4, 6, 8)]
    by_context = [table.milliseconds(context, 3, sizes)[0] for context in (32, 50, 300, 512)]
    for series in (by_batch, by_context):
        assert all((np.diff(line) >= -1e-9).all() for line in series)
        assert all((after - before >= -1e-9).all() for before, after in pairwise(series))
    assert min(noise) - 1e-9 <= min(line.min() for line in by_batch)
    assert max(noise) + 1e-9 >= max(line.max() for line in by_batch)


def test_a_sample_has_the_median_of_its_own_rounds() -> None:
    rows = points(linear)
    for row in rows:
        row["ms"] = [row["ms"][0] * factor for factor in (1, 2, 10)]
    table = CostTable(rows, np.array([[0, 1, 2], [0, 0, 2], [2, 2, 1]]))
    assert table.milliseconds(32, 1, [1])[:, 0] == pytest.approx(
        [linear(32, 1, 1) * each for each in (2, 1, 10)]
    )


@pytest.mark.parametrize(
    ("context", "batch", "size", "told"),
    [
        (31, 1, 1, "contexts of 32 to 512; 31"),
        (513, 1, 1, "contexts of 32 to 512; 513"),
        (32, 9, 1, "batches of 1 to 8; 9"),
        (32, 1, 17, "sizes of 1 to 16; 17"),
    ],
)
def test_what_was_not_measured_has_no_answer(context: int, batch: int, size: int, told: str) -> None:
    with pytest.raises(ProfileError, match=told):
        CostTable(points(linear), ALL).milliseconds(context, batch, [size])


def test_missing_combinations_are_noticed() -> None:
    with pytest.raises(ProfileError, match="not those of every context, batch and size"):
        CostTable(points(linear)[1:], ALL)
