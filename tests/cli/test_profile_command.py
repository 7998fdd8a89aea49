"""The command `drafthouse profile` refuses what it cannot measure before it builds anything."""

import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app
from cli.profile import length_table
from planner.profile.acceptance import summarise
from planner.profile.records import RequestRecord


@pytest.mark.parametrize("temperature", ["-1", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(temperature: str) -> None:
    result = CliRunner().invoke(
        app,
        ["profile", "deployments/smollm2-anpd.yaml", "--temperature", "0", f"--temperature={temperature}"],
    )
    assert result.exit_code == 2
    assert "it must be a finite number, 0 (greedy) or more" in " ".join(result.output.split())
    assert "build:" not in result.output


def test_acceptance_of_nothing_is_undefined() -> None:
    records = [RequestRecord("1", "math", 0.0, 0, 0, []), RequestRecord("2", "qa", 0.0, 6, 3, [])]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(length_table({"0": summarise(records)}))
    lines = {line.split()[1]: line.split()[3] for line in console.export_text().splitlines() if "│" in line}
    assert lines == {"all": "2.00", "math": "undefined", "qa": "2.00"}
