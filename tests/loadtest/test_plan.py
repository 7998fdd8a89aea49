from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loadtest.plan import plan_cells
from loadtest.settings import Arm, Slo, SweepSettings

OFF, ON = Arm(name="none", num_draft_tokens=0), Arm(name="anpd")


def test_arms_alternate_and_turn_round() -> None:
    cells = plan_cells(SweepSettings(arms=(OFF, ON), concurrency=(1, 2), rounds=2))
    order = [(cell.round, cell.load.label, cell.arm.name) for cell in cells if not cell.is_warmup]
    assert order == [
        (0, "c1", "none"),
        (0, "c1", "anpd"),
        (0, "c2", "none"),
        (0, "c2", "anpd"),
        (1, "c1", "anpd"),
        (1, "c1", "none"),
        (1, "c2", "anpd"),
        (1, "c2", "none"),
    ]


def test_every_arm_is_warmed_up_before_anything_is_measured() -> None:
    cells = plan_cells(SweepSettings(arms=(OFF, ON), concurrency=(8,), warmup_requests=3))
    assert [(cell.arm, cell.users, cell.requests) for cell in cells if cell.is_warmup] == [
        (OFF, 3, 3),
        (ON, 3, 3),
    ]
    assert [cell.number for cell in cells] == list(range(len(cells)))


def test_arms_of_a_round_send_the_same_and_rounds_go_on_in_the_file() -> None:
    settings = SweepSettings(arms=(OFF, ON), concurrency=(4,), rounds=3, requests=6, requests_per_user=2)
    sent = {(cell.round, cell.arm.name): (cell.first_prompt, cell.requests) for cell in plan_cells(settings)}
    for number in range(3):
        assert sent[number, "none"] == sent[number, "anpd"] == (8 * number, 8)


def test_open_loop_cells() -> None:
    settings = SweepSettings(
        concurrency=(), request_rates=(0.5, 4), requests=6, arrival_seconds=10, max_in_flight=32, rounds=1
    )
    cells = [cell for cell in plan_cells(settings) if not cell.is_warmup]
    assert [(cell.load.label, cell.requests, cell.users) for cell in cells[::2]] == [
        ("0.5rps", 6, 32),
        ("4rps", 40, 32),
    ]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"concurrency": (0,)}, "1 or more"),
        ({"concurrency": (2, 2)}, "different"),
        ({"request_rates": (0.0,)}, "above 0"),
        ({"concurrency": (), "request_rates": ()}, "at least one load point"),
        ({"arms": (ON, ON)}, "different names"),
        ({"arms": ()}, "at least one"),
        ({"arms": ({"name": "a/b"},)}, "pattern"),
        ({"max_token": 3}, "Extra inputs"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SweepSettings(**wrong)


def test_digest_is_of_what_is_sent(tmp_path: Path) -> None:
    settings = SweepSettings()
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(settings.prompts.read_bytes())
    assert settings.digest() == SweepSettings(prompts=copy, slo=Slo(ttft=100)).digest()
    assert settings.digest() != SweepSettings(max_tokens=64).digest()
    copy.write_bytes(copy.read_bytes() + b"\n")
    assert settings.digest() != SweepSettings(prompts=copy).digest()
