"""`drafthouse bench` in process: it touches nothing that a server may be reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from build.targets.architecture import Architecture
from cli.main import app
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface


@pytest.mark.parametrize("options", [["--context", "8"], ["--no-served", "--no-peer"]])
def test_what_is_measured_in_process_needs_no_repository(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config("llama", head_dim=32, max_position_embeddings=384)
    write_huggingface(Path("tiny"), config, random_weights(Architecture.from_config(config)))
    spec = {"name": "x", "target": {"model": "tiny"}, "engine": {"max_sequence_length": 384}}
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    result = CliRunner().invoke(app, ["bench", "spec.yaml", "--rounds", "1", *options])
    assert result.exit_code == 0, result.output
    assert list(Path("runs/bench/x").iterdir())
    assert not Path("runs/model_repo").exists()
