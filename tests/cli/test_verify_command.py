"""`drafthouse verify` on engines that cannot leave speculation out: what it needs, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app


def spec(folder: Path, name: str, **sections: Any) -> str:
    content = {
        "name": name,
        "target": {"model": "models/tiny"},
        "engine": {"kind": "vllm"},
        "speculation": {"method": "none"},
        **sections,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize(("kind", "engine"), [("vllm", "vLLM"), ("tensorrt_llm", "TensorRT-LLM")])
def test_a_second_server_is_asked_for(tmp_path: Path, kind: str, engine: str) -> None:
    path = spec(tmp_path, "drafting", engine={"kind": kind}, speculation={"method": "anpd"})
    result = CliRunner().invoke(app, ["verify", path])
    assert result.exit_code == 2
    assert f"on {engine} verify compares two servers" in " ".join(result.stderr.split())
    assert "--plain" in result.stderr


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"speculation": {"method": "prompt_lookup"}}, "other speculates (prompt_lookup); it must not"),
        ({"target": {"model": "models/another"}}, "other has another target or another engine than drafting"),
        ({"engine": {}}, "other has another target or another engine than drafting"),
    ],
)
def test_a_second_server_that_would_prove_nothing_is_refused(
    tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    drafting = spec(tmp_path, "drafting", speculation={"method": "anpd"})
    result = CliRunner().invoke(app, ["verify", drafting, "--plain", spec(tmp_path, "other", **other)])
    assert result.exit_code == 2 and told in " ".join(result.stderr.split())
