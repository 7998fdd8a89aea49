"""Queueing, cancelling and counting, on a target that is a table: milliseconds a test, the same on every machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from engine.engine import Engine
from engine.errors import QueueFullError
from engine.outputs import RequestOutput
from engine.request import GenerationRequest, SamplingParams
from speculators.anpd import AnpdSpeculator
from tests.engine.driving import Outcome, check_empty, generate, make_engine, prompt_of, run, submit
from tests.engine.tables import VOCABULARY, TableRunner


def request_of(length: int = 9, most: int = 12, **more: int) -> GenerationRequest:
    prompt = tuple(token % VOCABULARY for token in prompt_of(length, more.get("seed", 0)))
    return GenerationRequest(prompt, most)


def test_whoever_finds_the_queue_full_is_told_so_and_served_later() -> None:
    engine = make_engine(TableRunner(), max_batch_size=1, max_queue_size=2)
    waiting = [submit(engine, request_of(seed=seed)) for seed in range(3)]
    with pytest.raises(QueueFullError, match="0 requests run and 3 wait"):
        engine.submit(request_of(), print)
    engine.step()
    with pytest.raises(QueueFullError, match="1 requests run and 2 wait"):
        engine.submit(request_of(), print)
    while not waiting[0].finished:
        engine.step()
    late = submit(engine, request_of())
    while engine.step():
        pass
    check_empty(engine)
    assert all(outcome.finished for outcome in (*waiting, late))


def test_what_has_begun_goes_first_and_is_never_refused() -> None:
    engine = make_engine(TableRunner(), max_batch_size=1, max_queue_size=1)
    begun: list[str] = []

    def noting(name: str) -> Callable[[RequestOutput], None]:
        return lambda event: begun.append(name) if event.metrics.num_output_tokens <= 1 else None

    engine.submit(request_of(), noting("first"))
    engine.submit(request_of(), noting("second"))
    engine.submit(replace(request_of(most=3), continued=2), noting("continued"))
    while engine.step():
        pass
    assert list(dict.fromkeys(begun)) == ["continued", "first", "second"]


def test_a_request_that_another_ones_sink_cancels_in_the_same_step_counts_nothing_of_it() -> None:
    engine = make_engine(TableRunner(), AnpdSpeculator())
    second = Outcome()

    def cancel(event: RequestOutput) -> None:
        if event.metrics.num_output_tokens >= 3:
            engine.cancel(2)

    engine.submit(request_of(seed=1), cancel)
    engine.submit(request_of(seed=2), second.events.append)
    while engine.step():
        pass
    check_empty(engine)
    assert second.last.finish_reason == "cancelled"
    expected = generate(TableRunner(), request_of(seed=2)).tokens
    assert second.tokens == expected[: len(second.tokens)]
    assert second.last.metrics.num_output_tokens == len(second.tokens) < 4


@pytest.mark.parametrize("fails", ["late", "aborted", "late while it runs"])
def test_a_request_that_another_ones_sink_cancels_when_both_fail_ends_once(fails: str) -> None:
    engine = make_engine(TableRunner(), max_request_seconds=0.05 if "late" in fails else None)
    second, third = Outcome(), Outcome()

    def cancel(event: RequestOutput) -> None:
        if event.finish_reason:
            engine.cancel(2)

    engine.submit(request_of(most=99), cancel)
    engine.submit(request_of(most=99), second.events.append)
    engine.submit(request_of(most=99), third.events.append)
    if fails != "late":
        engine.step()
    if fails == "aborted":
        engine.abort(RuntimeError("the device is gone"))
    else:
        time.sleep(0.06)
        engine.step()
    check_empty(engine)
    assert (second.last.finish_reason, third.last.finish_reason) == ("cancelled", "error")


def test_cancelled_and_aborted_requests_leave_nothing_behind() -> None:
    engine = make_engine(TableRunner(), AnpdSpeculator(), max_batch_size=2)
    outcomes = [submit(engine, request_of(seed=seed)) for seed in range(4)]
    engine.step()
    assert engine.cancel(1) and engine.cancel(4) and not engine.cancel(4)
    engine.step()
    engine.abort(RuntimeError("the device is gone"))
    check_empty(engine)
    assert [outcome.last.finish_reason for outcome in outcomes] == [
        "cancelled",
        "error",
        "error",
        "cancelled",
    ]
    assert run(engine, [request_of()])[0].tokens == generate(TableRunner(), request_of()).tokens


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_engines_counters_are_the_sums_of_the_requests(batch: int) -> None:
    engine: Engine = make_engine(TableRunner(), AnpdSpeculator(), max_batch_size=batch)
    requests = [
        replace(request_of(5 + seed, 40, seed=seed), sampling=SamplingParams(0.4 * (seed % 2), seed=seed))
        for seed in range(9)
    ]
    metrics = [outcome.last.metrics for outcome in run(engine, requests)]
    counted = engine.statistics
    assert counted.emitted_tokens == sum(each.num_output_tokens for each in metrics) == 9 * 40
    assert counted.request_steps == sum(each.steps for each in metrics)
    assert counted.drafted_tokens == sum(each.total_draft_tokens for each in metrics) > 0
    assert counted.accepted_tokens == sum(each.total_accepted_draft_tokens for each in metrics)
    assert counted.emitted_tokens == counted.request_steps + counted.accepted_tokens
    assert sum(counted.drafted_by_position) == counted.drafted_tokens
    assert sum(counted.accepted_by_position) == counted.accepted_tokens
