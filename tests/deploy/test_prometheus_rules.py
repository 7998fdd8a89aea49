"""Prometheus' own tool on the configuration and the rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.bench.peers.processes import ProgramError, run
from tests.deploy.tools import DEPLOY, prometheus

pytestmark = pytest.mark.outside

RULES = DEPLOY / "prometheus" / "rules.yml"
UNIT_TESTS = Path(__file__).parent / "prometheus" / "rules.test.yml"


def test_configuration_and_rules_are_valid() -> None:
    printed = run([prometheus("promtool"), "check", "config", RULES.with_name("prometheus.yml")], seconds=60)
    assert "1 rule files found" in printed and "rules found" in printed


def test_figures_and_alerts() -> None:
    run([prometheus("promtool"), "test", "rules", UNIT_TESTS], seconds=120)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('request_type="waiting"', 'request_type="queued"'),
        ("/ 1e6", "/ 1e3"),
        ("> 0.999", "> 0.5"),
        ("clamp_max", "clamp_min"),
    ],
)
def test_the_unit_tests_notice_a_wrong_rule(tmp_path: Path, right: str, wrong: str) -> None:
    text = RULES.read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "rules.yml").write_text(text.replace(right, wrong), encoding="utf-8")
    tests = UNIT_TESTS.read_text(encoding="utf-8").replace(
        "../../../deploy/prometheus/rules.yml", "rules.yml"
    )
    (tmp_path / "rules.test.yml").write_text(tests, encoding="utf-8")
    with pytest.raises(ProgramError, match="FAILED"):
        run([prometheus("promtool"), "test", "rules", tmp_path / "rules.test.yml"], seconds=120)
