"""Latency, throughput and acceptance of records whose figures are worked out by hand."""

from __future__ import annotations

import pytest

from loadtest.measures import (
    acceptance_length,
    acceptance_rate,
    by_position,
    measure,
    measured_window,
    tokens_in_window,
)
from loadtest.records import CellRecord, ServerTimes
from loadtest.settings import Slo
from tests.loadtest.synthetic import EPOCH_NS, MS, record


def test_latencies_count_tokens_not_chunks() -> None:
    found = measure(record([100, 140, 200], [2, 4, 3]))
    assert found.ttft == 100
    assert found.latency == 200
    assert found.itl == pytest.approx(100 / 7)  # 9 tokens, 2 of them in the first chunk
    assert found.tpot == pytest.approx(100 / 8)
    assert found.icl == (40, 60)
    assert found.tokens_per_second == pytest.approx(45)


def test_one_chunk_has_no_time_between_tokens() -> None:
    found = measure(record([80], [1]))
    assert (found.ttft, found.latency, found.itl, found.tpot, found.icl) == (80, 80, None, None, ())


def test_several_tokens_at_once_take_no_time_each() -> None:
    found = measure(record([80], [3]))
    assert found.itl is None and found.tpot == 0


def test_an_answer_of_no_tokens_has_a_latency_and_nothing_else() -> None:
    found = measure(record([], [], ended_ns=EPOCH_NS + 70 * MS, due_ns=EPOCH_NS - 10 * MS))
    assert found.latency == 80
    assert (found.ttft, found.itl, found.tpot, found.icl, found.tokens_per_second) == (
        None,
        None,
        None,
        (),
        None,
    )


def test_without_token_ids_the_server_counts() -> None:
    found = measure(record([50, 100], [1, 1], chunk_tokens=None, output_tokens=11))
    assert found.itl == found.tpot == pytest.approx(5)


def test_without_any_count_there_is_no_figure_per_token() -> None:
    found = measure(record([50, 100], [1, 1], chunk_tokens=None, output_tokens=None))
    assert (found.itl, found.tpot, found.tokens_per_second) == (None, None, None)
    assert found.latency == 100


def test_queue_time_is_the_servers() -> None:
    assert measure(record([50], [1], server=ServerTimes(0, 3 * MS, 9 * MS, 9 * MS))).queue == 3
    assert measure(record([50], [1], server=ServerTimes(0, None, None, None))).queue is None


def test_open_loop_counts_from_when_the_request_was_due() -> None:
    found = measure(record([50, 90], [1, 2], sent_ms=30, due_ns=EPOCH_NS + 10 * MS))
    assert (found.ttft, found.latency) == (70, 110)
    assert found.itl == pytest.approx(20)


def test_failed_requests_have_no_latency() -> None:
    with pytest.raises(ValueError, match="did not complete"):
        measure(record([50], [1], error="ServerError"))


def test_objectives() -> None:
    found = measure(record([100, 200], [1, 10]))
    assert found.meets(Slo())
    assert found.meets(Slo(ttft=100, latency=200, tpot=11.2))
    assert not found.meets(Slo(ttft=99.9, latency=200))
    assert measure(record([100], [1])).meets(Slo(tpot=1))


def test_window_spans_the_measured_requests() -> None:
    records = [
        record([50], [1], sent_ms=0, role="warmup"),
        record([50], [1], sent_ms=100),
        record([80], [1], sent_ms=120),
        record([500], [1], sent_ms=130, role="filler"),
    ]
    window = measured_window(records)
    assert window is not None
    assert (window.start_ns - EPOCH_NS, window.end_ns - EPOCH_NS) == (100 * MS, 200 * MS)
    assert window.seconds == pytest.approx(0.1)
    assert measured_window([records[0]]) is None


def test_every_token_that_arrives_in_the_window_counts() -> None:
    records = [
        record(
            [50, 110, 150], [1, 2, 4], sent_ms=0, role="warmup"
        ),  # at 50, 110, 150: the last two are inside
        record([10, 100], [1, 8], sent_ms=100),  # at 110, 200: both
        record([20, 70, 150], [1, 16, 32], sent_ms=120, role="filler", finish_reason="cancelled"),  # 140, 190
        record([30], [64], sent_ms=120, role="filler", error="ServerError"),  # failed
    ]
    window = measured_window(records)
    assert window is not None
    assert tokens_in_window(records, window) == (2 + 4) + (1 + 8) + (1 + 16)


def test_tokens_of_unknown_chunks_are_spread() -> None:
    records = [
        record([10, 20, 30, 40], [1, 1, 1, 1], chunk_tokens=None, output_tokens=10),
        record(
            [15, 35, 60],
            [1, 1, 1],
            chunk_tokens=None,
            output_tokens=None,
            role="filler",
            finish_reason="cancelled",
        ),
    ]
    window = measured_window(records)
    assert window is not None
    assert tokens_in_window(records, window) == pytest.approx(10 + 2 * 2.5)


def test_acceptance_length_is_pooled_over_steps() -> None:
    records = [
        record([1], [1], output_tokens=12, accepted_tokens=8, draft_tokens=21),  # 4 steps
        record([1], [1], output_tokens=6, accepted_tokens=0, draft_tokens=7),  # 6 steps
        record([1], [1], output_tokens=9, accepted_tokens=None, draft_tokens=None),
    ]
    assert acceptance_length(records) == pytest.approx(18 / 10)
    assert acceptance_rate(records) == pytest.approx(8 / 28)
    assert acceptance_length([]) is None
    assert acceptance_rate([record([1], [1])]) is None


def test_a_request_cut_inside_accepted_tokens_took_a_step() -> None:
    assert acceptance_length([record([1], [1], output_tokens=3, accepted_tokens=3)]) == 3


def counted(drafted: dict[int, int] | None, accepted: dict[int, int] | None) -> CellRecord:
    return CellRecord("n", "anpd", "c1", 0, 0, 1, 1, True, drafted, accepted)


def test_positions_are_pooled_over_cells() -> None:
    found = by_position(
        "anpd", [counted({1: 10, 2: 4, 3: 0}, {1: 5, 2: 1}), counted({1: 30}, {1: 25}), counted(None, None)]
    )
    assert [(entry.position, entry.drafted, entry.accepted, entry.rate) for entry in found] == [
        (1, 40, 30, 0.75),
        (2, 4, 1, 0.25),
    ]
