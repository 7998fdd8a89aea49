"""What a load test measured, as predictions are held against it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cli.checks import measured_in, traffic_of
from loadtest import run_directory
from loadtest.measures import MeasuredCell
from loadtest.records import RequestRecord, read_records
from loadtest.settings import Arm, SweepSettings
from loadtest.summary import summarise
from planner.plan.predict import Traffic
from tests.loadtest.synthetic import record, simulate_sweep


def test_a_load_test_is_read_once_and_its_figures_are_the_report_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = (Arm(name="none", num_draft_tokens=0), Arm(name="two", num_draft_tokens=2))
    settings = SweepSettings(
        arms=arms, concurrency=(1, 2), request_rates=(3.0,), requests=4, rounds=2, max_tokens=16
    )
    run = simulate_sweep(tmp_path / "run", settings)
    points = [point for point in summarise(run).points if point.kind == "closed"]
    read: Counter[Path] = Counter()

    def counted(path: Path) -> list[RequestRecord]:
        read[path] += 1
        return list(read_records(path))

    monkeypatch.setattr(run_directory, "read_records", counted)
    found = measured_in(run.path)
    assert set(read.values()) == {1} and len(read) == 12
    assert [(cell.load, cell.arm, cell.tokens_per_second) for cell in found] == [
        (point.load, point.arm, point.output_tokens_per_second) for point in points
    ]
    assert {cell.asked for cell in found} == {0, 2}


@pytest.mark.parametrize(
    ("blocks", "reused", "cached"),
    [(10, 9, 288.0), (10, 0, 0.0), (None, None, 0.0)],
)
def test_what_the_server_had_of_a_prompt_is_no_reading(
    tmp_path: Path, blocks: int | None, reused: int | None, cached: float
) -> None:
    """300 tokens of prompt and 20 of answer in ten blocks."""
    settings = SweepSettings(concurrency=(1,), requests=1, rounds=1, max_tokens=20)
    cell, _ = list(simulate_sweep(tmp_path / "run", settings).finished())[-1]
    answer = record([50.0], [20], input_tokens=300, blocks=blocks, reused_blocks=reused)
    traffic = traffic_of(1, [MeasuredCell.of(cell, [answer])])
    assert traffic == Traffic(1, 300, 20, cached)
