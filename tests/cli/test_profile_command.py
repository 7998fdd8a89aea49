"""The command `drafthouse profile` refuses what it cannot measure before it builds anything."""

import pytest
from typer.testing import CliRunner

from cli.main import app


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(temperature: str) -> None:
    result = CliRunner().invoke(
        app,
        ["profile", "deployments/smollm2-anpd.yaml", "--temperature", "0", f"--temperature={temperature}"],
    )
    assert result.exit_code == 2
    assert "it must be a finite number, 0 (greedy) or more" in " ".join(result.output.split())
    assert "build:" not in result.output
