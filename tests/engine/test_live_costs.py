"""Costs that live steps correct: what they start from, what they learn, and what they doubt."""

from __future__ import annotations

import numpy as np
import pytest

from engine.control.costs import LiveCosts
from engine.plan import CostPoint


def table(factor: float = 1.0) -> list[CostPoint]:
    return [
        CostPoint(
            context=context,
            batch=batch,
            tokens=tokens,
            ms=factor * (10 + 0.5 * batch * tokens + context / 100),
        )
        for context in (32, 512, 2000)
        for batch in (1, 4, 16)
        for tokens in (1, 2, 4, 8)
    ]


def test_it_starts_from_the_plan_and_never_falls() -> None:
    costs = LiveCosts(table())
    found = costs.milliseconds(512, 4, 32).tolist()
    assert found[0] == pytest.approx(10 + 2 + 5.12) and found[-1] == pytest.approx(10 + 16 + 5.12)
    assert found == sorted(found) and len(found) == 29


def test_buckets_make_stairs() -> None:
    found = LiveCosts(table(), buckets=(2, 4, 8)).milliseconds(512, 1, 8)
    assert found[0] == found[1] < found[2] == found[3] < found[4] == found[7]


@pytest.mark.parametrize(("context", "batch", "tokens"), [(9, 1, 1), (90_000, 16, 16), (512, 64, 2048)])
def test_beyond_what_was_measured_its_end_holds(context: float, batch: int, tokens: int) -> None:
    costs = LiveCosts(table())
    least, most = costs.planned(32, 1, 1), costs.planned(2000, 16, 128)
    assert least <= costs.planned(context, batch, tokens) <= most
    costs.learn(context, batch, tokens, 2 * costs.planned(context, batch, tokens))


@pytest.mark.parametrize("factor", [0.25, 0.5, 2.0, 4.0])
def test_a_machine_that_is_faster_or_slower_everywhere_is_learned_from_one_kind_of_step(
    factor: float,
) -> None:
    costs = LiveCosts(table())
    for _ in range(60):
        costs.learn(512, 4, 16, factor * costs.planned(512, 4, 16))
    assert costs.milliseconds(512, 4, 16)[-1] == pytest.approx(factor * costs.planned(512, 4, 16), rel=0.02)
    elsewhere = costs.milliseconds(32, 1, 1)[0] / costs.planned(32, 1, 1)
    assert np.log(elsewhere) == pytest.approx(np.log(factor), rel=0.5)


@pytest.mark.parametrize("context", [300, 340, 710, 1449])
def test_what_is_learned_at_a_context_is_told_of_it(context: int) -> None:
    costs = LiveCosts(table())
    for _ in range(200):
        costs.learn(context, 4, 4, 2 * costs.planned(context, 4, 4))
    assert costs.milliseconds(context, 4, 4)[0] == pytest.approx(2 * costs.planned(context, 4, 4), rel=0.02)


def test_a_slope_that_is_wrong_is_learned_where_steps_were_run() -> None:
    costs = LiveCosts(table())
    for _ in range(60):
        for tokens in (4, 8, 16, 32):
            costs.learn(512, 4, tokens, 10 + 3 * tokens)
    found = costs.milliseconds(512, 4, 32)
    assert [found[tokens - 4] for tokens in (4, 8, 16, 32)] == pytest.approx([22, 34, 58, 106], rel=0.15)


def test_a_step_that_was_interrupted_tells_little() -> None:
    costs = LiveCosts(table())
    for _ in range(60):
        costs.learn(512, 4, 4, costs.planned(512, 4, 4))
    costs.learn(512, 4, 4, 50 * costs.planned(512, 4, 4))
    assert costs.milliseconds(512, 4, 4)[0] < 1.5 * costs.planned(512, 4, 4)
    costs.learn(512, 4, 4, 0.0)  # a clock that stood still


def test_what_was_not_run_for_long_is_in_doubt() -> None:
    costs = LiveCosts(table())
    costs.learn(512, 4, 4, costs.planned(512, 4, 4))
    costs.learn(512, 4, 16, costs.planned(512, 4, 16))
    before = costs.doubt(512, 4, 0, 12)
    assert costs.doubt(512, 4, 0, 0) == 0 < before
    for _ in range(300):
        costs.learn(512, 4, 4, costs.planned(512, 4, 4))
    assert costs.doubt(512, 4, 0, 12) > 1.5 * before
