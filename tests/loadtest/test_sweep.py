"""A whole sweep against a real Triton server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loadtest.settings import Arm, SweepSettings
from loadtest.sweep import run_sweep
from tests.loadtest.conftest import Server


def settings(server: Server, **changes: Any) -> SweepSettings:
    return SweepSettings(
        **{
            "host": server.grpc,
            "metrics_url": server.metrics_url,
            "max_tokens": 17,
            "arms": (Arm(name="none", num_draft_tokens=0), Arm(name="fast")),
            "concurrency": (1, 4),
            "rounds": 2,
            "requests": 6,
            "requests_per_user": 2.0,
            **changes,
        }
    )


def test_sweep(server: Server, tmp_path: Path) -> None:
    news: list[Any] = []
    result = run_sweep(settings(server), tmp_path / "run", news.append)
    report = result.report
    assert report.complete
    print(report.points)
    print(report.positions, report.speedups)
