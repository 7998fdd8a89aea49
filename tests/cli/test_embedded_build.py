"""`drafthouse build` on the embedded engine."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from cli.main import app
from tests.drafters import VARIANT, TinyDrafters


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "section"), [("eagle, tree", {"method": "eagle"}), ("eagle3, chain", {"method": "eagle3"})]
)
def test_a_drafter_of_another_target_is_refused_before_anything_is_built(
    name: str,
    section: dict[str, str],
    tiny_drafters: TinyDrafters,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    drafter = tmp_path / "drafter"
    shutil.copytree(tiny_drafters.speculation(name, "fp32", planted=False).checkpoint, drafter)  # type: ignore[union-attr]
    tensors = load_file(drafter / "model.safetensors")
    theirs = tiny_drafters.targets.weights(VARIANT)["model.embed_tokens.weight"]
    tensors["embed_tokens.weight"] = np.ascontiguousarray(theirs[::-1])
    save_file(tensors, drafter / "model.safetensors")
    spec = {
        "name": "foreign",
        "target": {"model": str(tiny_drafters.targets.source(VARIANT))},
        "engine": {"precision": "fp32", "max_sequence_length": 64},
        "speculation": {**section, "checkpoint": str(drafter)},
    }
    before = set(tmp_path.rglob("*"))
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    result = CliRunner().invoke(app, ["build", "spec.yaml"])
    assert result.exit_code == 2, result.output
    assert "embed_tokens.weight is not the target's" in " ".join(result.stderr.split())
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "spec.yaml"}
