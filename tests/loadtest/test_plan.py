"""The cells of a sweep, what their users send, and when it is due."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from loadtest.plan import Cell, Work, Workload, plan_cells, poisson_arrivals
from loadtest.settings import Arm, Slo, SweepSettings

OFF, ON = Arm(name="none", num_draft_tokens=0), Arm(name="anpd")
ARRIVALS = 20_000


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


def cell_of(**settings: object) -> Cell:
    given = {"rounds": 1, "requests": 3, "requests_per_user": 1, **settings}
    return next(cell for cell in plan_cells(SweepSettings(**given)) if not cell.is_warmup)  # type: ignore[arg-type]


def finish_all(workload: Workload, users: int) -> list[Work]:
    """Users who each take work, end the oldest, and take more, until there is none."""
    sent: list[Work] = []
    running: list[Work] = []
    while True:
        while len(running) < users and (work := workload.take()):
            running.append(work)
            sent.append(work)
        if not running:
            return sent
        workload.done(running.pop(0).index)


def test_one_user_sends_the_measured_requests_and_nothing_else() -> None:
    sent = finish_all(Workload(cell_of(concurrency=(1,)), 64, 0), 1)
    assert [(work.role, work.prompt, work.max_tokens) for work in sent] == [
        ("measured", i, 64) for i in range(3)
    ]


def test_users_are_set_out_of_step_and_kept_busy() -> None:
    sent = finish_all(Workload(cell_of(concurrency=(4,), requests=6), 64, 0), 4)
    roles = [work.role for work in sent]
    assert roles == ["warmup"] * 4 + ["measured"] * 6 + ["filler"] * 3
    assert [work.max_tokens for work in sent[:4]] == [16, 32, 48, 64]
    assert [work.prompt for work in sent[4:10]] == list(range(6))
    assert [work.index for work in sent] == list(range(13))


def test_load_stays_up_until_the_last_measured_request_ends() -> None:
    workload = Workload(cell_of(concurrency=(2,), requests=2), 64, 0)
    works = [workload.take() for _ in range(2)]
    for work in works:
        assert work is not None
        workload.done(work.index)
    slow, fast = workload.take(), workload.take()
    assert slow is not None and fast is not None and slow.role == fast.role == "measured"
    workload.done(fast.index)
    for _ in range(5):
        filler = workload.take()
        assert filler is not None and filler.role == "filler"
        workload.done(filler.index)
    assert not workload.is_over
    last = workload.take()
    workload.done(slow.index)
    assert workload.is_over and workload.take() is None
    assert last is not None and workload.outstanding == {last.index}


def test_open_loop_work_is_due_in_order_and_alike_in_both_arms() -> None:
    cells = [
        cell
        for cell in plan_cells(SweepSettings(concurrency=(), request_rates=(2,), rounds=2))
        if not cell.is_warmup
    ]
    due = [
        [work.due for _ in range(20) if (work := Workload.take(load))]
        for load in (Workload(c, 8, 1) for c in cells)
    ]
    assert due[0] == sorted(due[0], key=lambda each: each or 0.0)
    assert due[0] == due[1] and due[2] == due[3]
    assert due[0] != due[2]


def test_open_loop_begins_with_arrivals_that_do_not_count() -> None:
    workload = Workload(cell_of(concurrency=(), request_rates=(1,), requests=10, arrival_seconds=1), 8, 0)
    assert [work.role for _ in range(13) if (work := workload.take())] == ["warmup"] * 2 + [
        "measured"
    ] * 10 + ["filler"]


def test_warmup_ends_with_its_last_request() -> None:
    cell = plan_cells(SweepSettings(warmup_requests=3, concurrency=(2,)))[0]
    workload = Workload(cell, 8, 0)
    assert [work.role for work in finish_all(workload, 2)] == ["warmup"] * 3
    assert workload.is_over


def test_work_cannot_end_twice() -> None:
    workload = Workload(cell_of(concurrency=(1,)), 8, 0)
    work = workload.take()
    assert work is not None
    workload.done(work.index)
    with pytest.raises(KeyError):
        workload.done(work.index)


def gaps(rate: float, *seeds: int) -> NDArray[np.float64]:
    return np.diff([0.0, *itertools.islice(poisson_arrivals(rate, *seeds), ARRIVALS)])


def test_gaps_are_exponential() -> None:
    found = gaps(4.0, 1)
    error = 5 / np.sqrt(ARRIVALS)
    assert found.mean() == pytest.approx(0.25, rel=error)
    assert found.std() / found.mean() == pytest.approx(1.0, abs=2 * error)
    for share in (0.1, 0.5, 0.9, 0.99):  # quantiles of the exponential distribution
        assert (found <= -np.log(1 - share) / 4.0).mean() == pytest.approx(share, abs=error / 2)


def test_gaps_are_independent() -> None:
    found = gaps(1.0, 2)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / np.sqrt(ARRIVALS)


def test_counts_in_a_second_vary_like_their_mean() -> None:
    times = np.fromiter(itertools.islice(poisson_arrivals(10.0, 3), ARRIVALS), dtype=float)
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.2)


def test_seeds_decide() -> None:
    assert (gaps(2.0, 7, 1) == gaps(2.0, 7, 1)).all()
    assert (gaps(2.0, 7, 1) != gaps(2.0, 7, 2)).all()


def test_same_seed_scales_with_the_rate() -> None:
    assert gaps(1.0, 5) == pytest.approx(gaps(2.0, 5) * 2)


def test_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(poisson_arrivals(0.0, 1))
