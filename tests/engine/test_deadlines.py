"""A request that waits or runs for longer than the limits allow ends with an error, and nobody else notices."""

from __future__ import annotations

import pytest

from engine.compiled_runner import CompiledRunner
from engine.deadlines import Deadline, check_one_shot
from engine.errors import QueueFullError, RequestError, TooLongError
from engine.request import GenerationRequest
from tests.engine.driving import check_empty, generate, make_engine, prompt_of, submit
from tests.tiny import TinyTargets


class Clock:
    """Stands in for the monotonic clock of requests and engine."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "fp32")


def test_what_waits_too_long_is_refused_as_by_a_full_queue(runner: CompiledRunner, clock: Clock) -> None:
    engine = make_engine(runner, max_batch_size=1, max_queue_seconds=5)
    running = submit(engine, GenerationRequest(prompt_of(4), 20))
    engine.step()
    clock.now += 1
    early = submit(engine, GenerationRequest(prompt_of(5), 4))
    clock.now += 4.5
    late = submit(engine, GenerationRequest(prompt_of(6), 4))
    engine.step()
    assert not early.finished and not running.finished
    clock.now += 1
    engine.step()
    assert isinstance(early.last.error, QueueFullError)
    assert "waited for 5.5 s" in str(early.last.error) and "try again in 5 s" in str(early.last.error)
    while engine.step():
        pass
    assert running.last.finish_reason == "length" and late.last.finish_reason == "length"
    check_empty(engine)


def test_what_takes_too_long_ends_and_gives_back_its_slot(runner: CompiledRunner, clock: Clock) -> None:
    expected = generate(runner, GenerationRequest(prompt_of(5), 8)).tokens
    engine = make_engine(runner, max_batch_size=1, max_request_seconds=60)
    endless = submit(engine, GenerationRequest(prompt_of(4), 100))
    clock.now += 30
    waiting = submit(engine, GenerationRequest(prompt_of(5), 8))
    engine.step()
    clock.now += 31
    while engine.step():
        pass
    assert isinstance(endless.last.error, TooLongError) and "60 s is the limit" in str(endless.last.error)
    assert len(endless.tokens) == 1 and waiting.tokens == expected
    check_empty(engine)


def test_what_waits_for_longer_than_a_request_may_take_ends_once(
    runner: CompiledRunner, clock: Clock
) -> None:
    engine = make_engine(runner, max_batch_size=1, max_request_seconds=60, max_queue_seconds=40)
    outcomes = [submit(engine, GenerationRequest(prompt_of(4), 100)) for _ in range(2)]
    engine.step()
    clock.now += 61
    assert not engine.step()
    assert [type(outcome.last.error) for outcome in outcomes] == [TooLongError] * 2
    check_empty(engine)


def test_without_limits_nothing_ends_early(runner: CompiledRunner, clock: Clock) -> None:
    engine = make_engine(runner, max_batch_size=1)
    outcomes = [submit(engine, GenerationRequest(prompt_of(4), 20)) for _ in range(3)]
    while engine.step():
        clock.now += 10_000
    assert [outcome.last.finish_reason for outcome in outcomes] == ["length"] * 3


def test_one_shots() -> None:
    check_one_shot(64, None)
    check_one_shot(64, 64)
    with pytest.raises(
        RequestError, match=r"max_tokens is 65; a request that is not streamed may ask for 64"
    ):
        check_one_shot(65, 64)
    with pytest.raises(RequestError, match="answers streams only"):
        check_one_shot(1, 0)


def test_a_deadline_over_many_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set by an hour meanwhile ends nothing."""
    monkeypatch.setattr("time.time_ns", lambda: 3600 * 10**9)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    Deadline(95.0, 6).check()
    Deadline(0.0, None).check()
    with pytest.raises(TooLongError, match="10 s is the limit"):
        Deadline(89.0, 10).check()
