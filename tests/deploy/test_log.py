"""Log files are bounded, while somebody writes to them and where there is no room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.log import bound, previous_log


def test_a_long_log_is_put_aside_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with previous_log(path) as writer:
        for number in range(50):
            writer.write(f"line {number:04}\n".encode() * 10)
            writer.flush()
            bound(path, most=1000)
            assert path.stat().st_size <= 1000
        assert b"\0" not in path.read_bytes(), "whoever writes goes on at the end that there is now"
    kept = (tmp_path / "log.1").read_text() + path.read_text()
    assert kept.endswith("line 0049\n" * 10)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}


def test_without_room_for_a_copy_it_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    path = tmp_path / "log"
    path.write_text("x" * 2000)
    bound(path, most=1000)
    assert path.stat().st_size == 0


def test_a_short_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("x")
    bound(path, most=1000)
    bound(tmp_path / "none", most=1000)
    assert path.read_text() == "x" and not (tmp_path / "log.1").exists()
