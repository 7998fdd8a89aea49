from __future__ import annotations

import pytest

from loadtest.plan import Cell, plan_cells
from loadtest.settings import SweepSettings
from loadtest.workload import Work, Workload


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
