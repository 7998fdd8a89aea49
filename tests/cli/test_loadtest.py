"""`drafthouse loadtest` and `demo` with several deployments: what cannot be compared is refused beforehand."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app


def write(folder: Path, name: str, precision: str = "int8", first_port: int = 8000, **serving: str) -> Path:
    path = folder / f"{name}.yaml"
    ports = {key: first_port + place for place, key in enumerate(("http_port", "grpc_port", "metrics_port"))}
    content = {
        "name": name,
        "target": {"model": "models/tiny"},
        "engine": {"precision": precision},
        "speculation": {"method": "anpd"},
        "serving": {**ports, "repository": f"runs/{name}", **serving},
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("command", ["loadtest", "demo"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"first_port": 8002}, "b and a share a port or the model repository"),
        ({"first_port": 8100, "repository": "runs/a"}, "b and a share a port or the model repository"),
        ({"first_port": 8100, "precision": "fp32"}, "b serves tiny in fp32, a tiny in int8"),
    ],
)
def test_deployments_that_cannot_stand_side_by_side(
    command: str, other: dict, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write(tmp_path, "a"), write(tmp_path, "b", **other)
    result = CliRunner().invoke(app, [command, str(paths[0]), "--beside", str(paths[1])])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
