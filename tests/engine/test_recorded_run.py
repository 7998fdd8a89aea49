"""Drafts, outputs and counters are those of the recorded run; see `tests.engine.recording`."""

import json

import pytest

from tests.engine.recording import CASES, RECORD, record
from tests.engine.tables import TableRunner

_RECORDED = json.loads(RECORD.read_text("utf-8"))


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_recorded_one(name: str) -> None:
    found, expected = record(CASES[name]), _RECORDED[name]
    for kind in ("requests", "steps"):
        pairs = zip(found[kind], expected[kind], strict=False)
        differing = [place for place, (now, then) in enumerate(pairs) if now != then]
        assert not differing, (
            f"{name}: of {kind}, number {differing[0]} is the first of {len(differing)} to differ"
        )
    assert found == expected


def test_all_cases_are_recorded_and_no_other() -> None:
    assert list(_RECORDED) == list(CASES)


def test_control_a_row_that_is_lost_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TableRunner, "commit", lambda self, index, kept: None)
    assert record(CASES["eagle3, tree"]) != _RECORDED["eagle3, tree"]
