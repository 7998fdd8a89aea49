"""Figures of a whole sweep, known by construction where it is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.settings import Arm, Slo, SweepSettings
from loadtest.summary import summarise
from tests.loadtest.synthetic import simulate_sweep

ARMS = (Arm(name="none", num_draft_tokens=0), Arm(name="anpd"))


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
