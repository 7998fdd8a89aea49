"""Figures of a sweep: worked out by hand where it is small, known by construction where it is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.acceptance import acceptance_length, acceptance_rate
from loadtest.cells import MeasuredCell
from loadtest.comparison import by_category, speed_ups
from loadtest.plan import load_points
from loadtest.records import CellRecord, RequestRecord
from loadtest.settings import Arm, Slo, SweepSettings
from loadtest.summary import summarise
from tests.loadtest.synthetic import record, simulate_sweep

ARMS = (Arm(name="none", num_draft_tokens=0), Arm(name="anpd"))


def test_acceptance_length_is_pooled_over_steps() -> None:
    records = [
        record([1], [1], output_tokens=12, accepted_tokens=8, draft_tokens=21),  # 4 steps
        record([1], [1], output_tokens=6, accepted_tokens=0, draft_tokens=7),  # 6 steps
        record([1], [1], output_tokens=9, accepted_tokens=None, draft_tokens=None),
    ]
    assert acceptance_length(records) == pytest.approx(18 / 10)
    assert acceptance_rate(records) == pytest.approx(8 / 28)
    assert acceptance_length([]) is None
    assert acceptance_rate([record([1], [1])]) is None


def test_a_request_cut_inside_accepted_tokens_took_a_step() -> None:
    assert acceptance_length([record([1], [1], output_tokens=3, accepted_tokens=3)]) == 3


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


@pytest.fixture(scope="module")
def settings() -> SweepSettings:
    return SweepSettings(
        arms=ARMS, concurrency=(1, 8), rounds=2, max_tokens=64, slo=Slo(tpot=30), requests=12
    )


def test_simulated_sweep(settings: SweepSettings, tmp_path: Path) -> None:
    report = summarise(simulate_sweep(tmp_path / "run", settings))
    assert report.complete and report.cells_finished == 8
    points = {(point.load, point.arm): point for point in report.points}
    plain = points["c1", "none"]
    step, tokens = 22.0, 64
    seconds = (50 + (tokens - 1) * step) / 1000
    assert plain.output_tokens_per_second_by_round[0] == pytest.approx(tokens / seconds, rel=1e-3)
    assert plain.tpot is not None and plain.tpot.p50 == pytest.approx(step, rel=0.02)
    assert plain.ttft is not None and plain.ttft.p99 == pytest.approx(50)
    assert plain.queue is not None and plain.queue.mean == 1
    assert plain.requests == 24 and plain.failures == 0
    assert plain.acceptance_length == 1.0 and plain.goodput_share == 1.0
    assert points["c8", "none"].goodput_share == 0.0
    # Eight users in step 36 ms long, all the time: fillers keep the window full.
    assert points["c8", "none"].output_tokens_per_second_by_round[0] == pytest.approx(8 / 0.0360, rel=0.03)


def test_simulated_speed_ups(settings: SweepSettings, tmp_path: Path) -> None:
    report = summarise(simulate_sweep(tmp_path / "run", settings))
    first, last = report.speedups
    assert (first.load, last.load) == ("c1", "c8")
    assert first.value > 1.3 and last.value < 1.1
    assert first.low is not None and first.high is not None and first.low < first.value < first.high
    assert first.verdict == "faster"
    assert first.ceiling is not None and first.value < first.ceiling
    categories = {entry.category: entry for entry in report.categories if entry.arm == "anpd"}
    assert categories["translation"].acceptance_length == 1.0
    translation = categories["translation"].speedup
    assert translation is not None and translation.value == pytest.approx(1 / 1.1, rel=0.02)
    assert categories["rag"].acceptance_length == pytest.approx(64 / 33, rel=0.05)
    assert [entry.position for entry in report.positions] == [1, 2, 3, 4, 5, 6, 7]
    assert report.positions[1].rate == pytest.approx(0.36, abs=0.01)


def test_failures_are_counted_and_left_out(settings: SweepSettings, tmp_path: Path) -> None:
    whole = summarise(simulate_sweep(tmp_path / "whole", settings))
    report = summarise(simulate_sweep(tmp_path / "failing", settings, failing=1))
    assert sum(point.failures for point in report.points) == sum(entry.count for entry in report.failures)
    assert {entry.error for entry in report.failures} == {"QueueFull"}
    for point, other in zip(report.points, whole.points, strict=True):
        assert point.failures == 2 and point.requests == other.requests
        assert point.latency is not None and other.latency is not None
        assert point.latency.count == other.latency.count - 2


def test_unfinished_sweep(settings: SweepSettings, tmp_path: Path) -> None:
    report = summarise(simulate_sweep(tmp_path / "run", settings, cells=3))
    assert not report.complete
    assert (report.cells_finished, report.cells_planned) == (1, 8)
    assert report.speedups == []


def test_open_loop_has_latency_but_no_speed_up(tmp_path: Path) -> None:
    settings = SweepSettings(
        arms=ARMS, concurrency=(), request_rates=(1,), rounds=1, max_tokens=16, arrival_seconds=8
    )
    report = summarise(simulate_sweep(tmp_path / "run", settings))
    assert report.speedups == [] and report.lowest_load is None
    assert all(point.latency is not None for point in report.points)
    assert all(entry.speedup is None for entry in report.categories)
