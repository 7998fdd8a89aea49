"""Speed-ups and their intervals: worked out by hand where they are small, and held against drift that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadtest.comparison import (
    Interval,
    Measured,
    Pairs,
    by_category,
    drift_of,
    interval,
    ratio,
    speed_ups,
)
from loadtest.measures import MeasuredCell
from loadtest.plan import load_points
from loadtest.records import CellRecord, RequestRecord
from loadtest.settings import Arm, SweepSettings
from tests.loadtest.synthetic import record

ARMS = (Arm(name="none", num_draft_tokens=0), Arm(name="anpd"))


def cell(arm: str, round_number: int, *requests: RequestRecord) -> MeasuredCell:
    facts = CellRecord(f"{arm}{round_number}", arm, "c1", round_number, 0, 1, len(requests), True, None, None)
    return MeasuredCell.of(facts, requests)


def test_speed_up_is_the_ratio_of_all_tokens_by_all_time() -> None:
    settings = SweepSettings(arms=ARMS, concurrency=(1,), rounds=2)
    cells = [
        cell("none", 0, record([500, 1000], [1, 9])),  # 10 tokens in 1 s
        cell("anpd", 0, record([100, 500], [1, 9])),  # 10 in 0.5 s
        cell("anpd", 1, record([100, 2000], [1, 29])),  # 30 in 2 s
        cell("none", 1, record([100, 4000], [1, 29])),  # 30 in 4 s
    ]
    (found,) = speed_ups(settings, cells)
    assert found.by_round == pytest.approx([2.0, 2.0])
    assert found.value == pytest.approx((40 / 2.5) / (40 / 5))
    assert found.low == pytest.approx(2.0) and found.high == pytest.approx(2.0)
    assert found.verdict == "faster"


def test_rounds_without_a_partner_do_not_count() -> None:
    settings = SweepSettings(arms=ARMS, concurrency=(1,), rounds=2)
    cells = [
        cell("none", 0, record([500, 1000], [1, 9])),
        cell("anpd", 0, record([100, 500], [1, 9])),
        cell("anpd", 1, record([1, 2], [1, 9])),
    ]
    (found,) = speed_ups(settings, cells)
    assert found.value == pytest.approx(2.0)
    assert speed_ups(settings, cells[1:]) == []


def test_speed_up_of_a_kind_is_that_of_its_tokens_by_its_time() -> None:
    """The one definition: neither the mean of the requests' speeds nor the mean of the kinds."""
    settings = SweepSettings(arms=ARMS, concurrency=(1,), rounds=1)
    cells = [
        cell(
            "none",
            0,
            record([1000], [10]),
            record([3000], [10], index=1),
            record([1000], [30], index=2, category="math"),
        ),
        cell(
            "anpd",
            0,
            record([500], [10]),
            record([2000], [10], index=1),
            record([1000], [30], index=2, category="math"),
        ),
    ]
    (lowest,) = load_points(settings)
    entries = {(entry.arm, entry.category): entry for entry in by_category(settings, cells, lowest)}
    assert entries["none", "chat"].tokens_per_second == pytest.approx(20 / 4)
    assert entries["anpd", "chat"].tokens_per_second == pytest.approx(20 / 2.5)
    chat, math = entries["anpd", "chat"].speedup, entries["anpd", "math"].speedup
    assert chat is not None and chat.value == pytest.approx(4 / 2.5)
    assert math is not None and math.value == pytest.approx(1.0)
    assert entries["none", "chat"].speedup is None
    assert (chat.low, chat.high, chat.verdict) == (None, None, "not shown"), "one round shows nothing"


def test_one_round_shows_nothing() -> None:
    settings = SweepSettings(arms=ARMS, concurrency=(1,), rounds=1)
    cells = [cell("none", 0, record([500, 1000], [1, 9])), cell("anpd", 0, record([100, 200], [1, 9]))]
    (found,) = speed_ups(settings, cells)
    assert found.value == pytest.approx(5.0)
    assert (found.low, found.high, found.verdict) == (None, None, "not shown")


def pairs_of(count: int = 8, spread: float = 0.0, seed: int = 0) -> Pairs:
    """Requests of which the arm takes half the time, their latencies scattered by so much."""
    random = np.random.default_rng(seed)
    tokens = np.full(count, 10.0)
    return np.stack(
        [tokens, random.lognormal(0, spread, count), tokens, 2 * random.lognormal(0, spread, count)], axis=1
    )


def measured(*by_round: float, spread: float = 0.0) -> Measured:
    value = float(np.exp(np.log(by_round).mean()))
    return Measured(
        value, by_round, [pairs_of(spread=spread, seed=number) for number in range(len(by_round))]
    )


def intervals(loads: dict[int, Measured]) -> dict[int, Interval | None]:
    """Those of an arm at all its loads."""
    drift = drift_of(loads.values())
    return {load: interval(each, drift) for load, each in loads.items()}


def test_the_ratio_is_that_of_all_tokens_by_all_time() -> None:
    pairs = np.array([[10.0, 1.0, 10.0, 2.0], [30.0, 3.0, 30.0, 3.0]])
    assert ratio(pairs) == pytest.approx((40 / 4) / (40 / 5))


def test_one_round_has_no_interval() -> None:
    assert intervals({1: measured(3.62), 8: measured(1.2)}) == {1: None, 8: None}


def test_two_rounds_at_one_load() -> None:
    """Student's t with one degree of freedom is 12.7: what two measurements say about their own scatter."""
    found = intervals({8: measured(1.1, 1.21)})[8]
    assert found is not None
    half = 12.706 * (math.log(1.21) - math.log(1.1)) / 2  # standard error of two: half their distance
    assert found.low == pytest.approx(math.sqrt(1.1 * 1.21) / math.exp(half), rel=1e-3)
    assert found.high == pytest.approx(math.sqrt(1.1 * 1.21) * math.exp(half), rel=1e-3)


def test_other_loads_tell_how_much_rounds_scatter() -> None:
    alone = intervals({1: measured(1.50, 1.53)})[1]
    among = intervals({load: measured(1.50, 1.53) for load in (1, 2, 4, 8, 16)})[1]
    assert alone is not None and among is not None
    assert among.high / among.low < 1.1 < alone.high / alone.low


def test_a_load_whose_rounds_disagree_is_not_saved_by_the_others() -> None:
    steady = {load: measured(1.50, 1.53) for load in (2, 4, 8, 16)}
    found = intervals({**steady, 1: measured(3.6, 1.1)})[1]
    assert found is not None and found.low < 1


def test_requests_that_differ_widen_it_where_rounds_happen_to_agree() -> None:
    loads = (1, 2, 4)
    narrow, wide = (
        intervals({load: measured(1.5, 1.5, spread=spread) for load in loads})[1] for spread in (0.0, 0.3)
    )
    assert narrow is not None and wide is not None
    assert narrow.low == pytest.approx(1.5) and wide.low < 1.35


def test_a_load_with_a_round_less_keeps_what_it_has() -> None:
    found = intervals({1: measured(1.5, 1.53), 2: measured(1.2)})
    assert found[1] is not None and found[2] is None


def test_kinds_of_prompts_drift_with_their_cells() -> None:
    """One cell was slow, and every kind in it: that many kinds say so is no more evidence."""
    drift = drift_of([measured(1.0, 1.5)])
    kinds = [interval(measured(1.0 + number / 50, 1.0 + number / 50), drift) for number in range(6)]
    whole = interval(measured(1.0, 1.5), drift)
    assert whole is not None and whole.high / whole.low > 10
    assert all(each is not None and each.high / each.low >= 0.99 * whole.high / whole.low for each in kinds)


@pytest.mark.parametrize(("loads", "rounds"), [(1, 2), (5, 2), (3, 3), (2, 4)])
def test_it_holds_the_truth_at_its_level(loads: int, rounds: int) -> None:
    """Cells on a shared machine: each runs some per cent faster or slower, differently at different loads."""
    random = np.random.default_rng(loads * 10 + rounds)
    held = total = 0
    for _ in range(400):
        drift = np.linspace(0.08, 0.02, loads)[:, None] * random.normal(0, 1, (loads, rounds))
        found = intervals({load: measured(*np.exp(drift[load]), spread=0.1) for load in range(loads)})
        for each in found.values():
            assert each is not None
            held += each.low <= 1 <= each.high
            total += 1
    assert held / total > 0.93


def test_drift_alone_seldom_shows_a_difference_with_two_rounds() -> None:
    """What a bootstrap over two rounds called a difference in every second case."""
    random = np.random.default_rng(7)
    shown = 0
    for _ in range(300):
        found = intervals({load: measured(*np.exp(random.normal(0, 0.06, 2))) for load in range(5)})
        shown += sum(each is not None and not each.low <= 1 <= each.high for each in found.values())
    assert shown / 1500 < 0.05
