"""Responses are sent in order, from one thread, and one that fails does not hold up the others."""

import threading

from engine.serving.outbox import Outbox


def test_jobs_run_in_order_in_one_other_thread() -> None:
    done: list[tuple[int, int]] = []
    outbox = Outbox()
    for number in range(100):
        outbox.put(lambda number=number: done.append((number, threading.get_ident())))  # type: ignore[misc]
    outbox.close()
    assert [number for number, _ in done] == list(range(100))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})
    assert len({thread for _, thread in done}) == 1


def test_a_failure_is_told_and_the_rest_goes_on() -> None:
    told: list[Exception] = []
    done: list[str] = []

    def fail() -> None:
        raise OSError("gone")

    def fail_again(error: Exception) -> None:
        told.append(error)
        raise error

    outbox = Outbox()
    outbox.put(fail, fail_again)
    outbox.put(fail)
    outbox.put(lambda: done.append("after"))
    outbox.close()
    assert done == ["after"]
    assert [str(error) for error in told] == ["gone"]
