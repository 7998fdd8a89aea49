"""`drafthouse generate` against a served deployment."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from tests.end_to_end.deployment import Deployment


@pytest.mark.triton
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_request_for_which_nothing_is_drafted(protocol: str, served: Deployment, tmp_path: Path) -> None:
    server = served.server
    serving = {
        "http_port": server.http_port,
        "grpc_port": server.grpc_port,
        "metrics_port": server.metrics_port,
    }
    path = tmp_path / "spec.yaml"
    path.write_text(
        yaml.safe_dump({"name": "tiny", "target": {"model": str(served.target)}, "serving": serving}),
        encoding="utf-8",
    )
    asked = ["generate", str(path), "one two", "--max-tokens", "1", "--protocol", protocol]
    answer = CliRunner().invoke(app, asked)
    assert answer.exit_code == 0, answer.exception
    assert "1 tokens, finished: length, acceptance length 1.00, nothing drafted" in answer.output
