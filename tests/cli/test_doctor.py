"""`drafthouse doctor` with programs that are there, fail, or are missing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app


def test_gpus_and_compose_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, lines in (("nvidia-smi", "echo 'GPU one, 80 GB'; echo 'GPU two, 80 GB'"), ("docker", "exit 1")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    told = CliRunner().invoke(app, ["doctor"]).output
    assert "GPU one, 80 GB" in told and "GPU two, 80 GB" in told
    assert "docker compose version fails" in told
    (make,) = [line for line in told.splitlines() if " make " in line]
    assert "not found" in make
    (installed,) = [line for line in told.splitlines() if " tensorrt-llm " in line]
    assert "not installed" in installed
