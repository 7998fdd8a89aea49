from __future__ import annotations

import time
from pathlib import Path

import pytest

from loadtest.records import CellRecord, RecordError, RecordWriter, ServerTimes, epoch_ns, read_records
from tests.loadtest.synthetic import record

SERVER = ServerTimes(1, 2, 3, None)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    written = [
        record([10, 20], [1, 3], server=SERVER, category="Übersetzung"),
        record([], [], error="QueueFull", error_message="full\nvery", output_tokens=None),
        record([5], [1], chunk_tokens=None, due_ns=7),
    ]
    with RecordWriter(tmp_path / "cells" / "requests.jsonl") as writer:
        for each in written:
            writer.write(each)
    assert list(read_records(tmp_path / "cells" / "requests.jsonl")) == written


def test_records_are_readable_before_the_writer_is_closed(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "requests.jsonl") as writer:
        writer.write(record([1], [1]))
        assert len(list(read_records(tmp_path / "requests.jsonl"))) == 1


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"cell": 1}'])
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(record([1], [1]).to_json() + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match=r"requests\.jsonl:2: not a request record"):
        list(read_records(file))


def test_cell_comes_back_as_it_was() -> None:
    cell = CellRecord("n", "none", "c1", 0, 1, 2, 3, True, {1: 10, 2: 9}, None)
    assert CellRecord.from_json(cell.to_json()) == cell


def test_what_completed_and_what_failed() -> None:
    assert record([1], [1]).completed
    cancelled = record([1], [1], finish_reason="cancelled")
    assert not cancelled.completed and not cancelled.failed
    failed = record([1], [1], error="ServerError", error_message="no")
    assert failed.failed and not failed.completed
    assert not record([], [], output_tokens=None, finish_reason=None).completed


def test_an_answer_of_no_tokens_is_an_answer() -> None:
    answer = record([], [], finish_reason="stop")
    assert answer.completed and not answer.failed
    assert not record([], [], finish_reason="cancelled").completed


def test_epoch_times() -> None:
    assert abs(epoch_ns(time.perf_counter_ns()) - time.time_ns()) < 1e9
    assert epoch_ns(2_000) - epoch_ns(1_000) == 1_000
