"""What a load test measured, as predictions are held against it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cli.checks import measured_in
from loadtest import run_directory
from loadtest.records import RequestRecord, read_records
from loadtest.settings import Arm, SweepSettings
from loadtest.summary import summarise
from tests.loadtest.synthetic import simulate_sweep


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
