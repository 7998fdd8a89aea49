"""When a request that found the queue full is told to come again."""

from __future__ import annotations

from engine.pace import Pace


def test_it_reckons_with_the_requests_that_have_ended_lately() -> None:
    time = [0.0]
    pace = Pace(lambda: time[0])
    assert pace.seconds(6) == 5, "nothing is known"
    for _ in range(50):  # first one in ten seconds, then two a second
        time[0] += 10.0
        pace.note_end()
    assert pace.seconds(3) == 30 and pace.seconds(100) == 60 and pace.seconds(0) == 1
    for _ in range(40):
        time[0] += 0.5
        pace.note_end()
    assert pace.seconds(6) == 3 and pace.seconds(1) == 1


def test_a_standstill_is_noticed() -> None:
    time = [0.0]
    pace = Pace(lambda: time[0])
    for _ in range(3):
        time[0] += 1.0
        pace.note_end()
    time[0] += 20.0
    assert pace.seconds(2) == 22
