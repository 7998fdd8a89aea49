"""Log files are bounded, while somebody writes to them and where there is no room."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.log import bound, previous_log, refusals


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


def test_what_a_model_said_is_told_once_and_without_its_traceback() -> None:
    reason = "Internal: EngineError: trees of 120 tokens,\\nnot of 84\\n\\nAt:\\n  /kit/engine/deployment.py(53): f\\n"
    lines = [
        'E1129 08:17:01 server.cc:241] "CudaDriverHelper has not been initialized."',
        f'E1129 08:18:00 backend_model.cc:692] "ERROR: Failed to create instance: {reason}"',
        f"E1129 08:18:00 model_lifecycle.cc:642] \"failed to load 'tensorrt_llm' version 1: {reason}\"",
        f"E1129 08:18:09 model_lifecycle.cc:642] \"failed to load 'tensorrt_llm' version 1: {reason}\"",
        "I1129 08:18:00 model_lifecycle.cc:777] \"failed to load 'tensorrt_llm'\"",
        "error: creating server: Internal - failed to load all models",
    ]
    assert refusals(lines) == ["tensorrt_llm: EngineError: trees of 120 tokens, not of 84"]
    died = (
        "failed to load 'tensorrt_llm' version 1: Internal: Stub process 'tensorrt_llm_0_0' is not healthy."
    )
    assert refusals([lines[0], died]) == [], "the lines around it may say more"
