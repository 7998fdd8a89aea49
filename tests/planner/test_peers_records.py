"""The directory of a comparison: begun anew it says nothing of an earlier one, and nothing else is emptied."""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.files.directories import ForeignDirectoryError
from planner.bench.peers.records import (
    RESULT,
    PeerRecord,
    append_record,
    begin_records,
    check_records,
    read_records,
)

RECORD = PeerRecord("drafthouse", "none", 0, "a", "qa", 3, (5, 6), 0.2, 0.1, 2)


def test_a_comparison_that_is_stopped_leaves_no_result_of_an_earlier_one(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "one"
    check_records(folder)
    assert not folder.parent.exists(), "looking leaves nothing behind"
    append_record(begin_records(folder), RECORD)
    (folder / RESULT).write_text("{}")
    check_records(folder)
    assert (folder / RESULT).exists() and read_records(folder / "records.jsonl") == [RECORD]
    assert read_records(begin_records(folder)) == []
    assert not (folder / RESULT).exists()


@pytest.mark.parametrize("name", ["notes.txt", "records.jsonl"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    (tmp_path / RESULT).write_text("mine, too")
    for refusing in (check_records, begin_records):
        with pytest.raises(ForeignDirectoryError, match="holds something else than the records"):
            refusing(tmp_path)
        with pytest.raises(ForeignDirectoryError, match=r"notes.txt is a file|records.jsonl is a file"):
            refusing(tmp_path / name)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine", "mine, too"}
