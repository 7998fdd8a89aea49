"""`drafthouse peers --chain`: what cannot be checked against vLLM is refused before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("smollm2-mlp-speculator", "method mlp_speculator: vLLM 0.32.0 has no class"),
        ("smollm2-eagle3-vllm", "is for vLLM (engine.kind); this needs the embedded engine"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    example: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["peers", str(DEPLOYMENTS / f"{example}.yaml"), "--chain", "3"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())
