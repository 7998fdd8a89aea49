"""`drafthouse loadtest` and `demo`: what cannot be compared, and whoever is not meant, is refused beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from build.identity import identity
from cli.main import app
from cli.measure import sweep_settings
from deployments.spec import DeploymentSpec, load_spec
from tests.end_to_end.tiny_tokenizers import write_tokenizer
from tests.loadtest.conftest import start_triton
from tests.ports import free_ports


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


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A running server that says it is the deployment of a spec, and that spec."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "prompts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    content: dict[str, Any] = {
        "name": "a",
        "target": {"model": str(folder)},
        "speculation": {"method": "anpd"},
        "loadtest": {
            "prompts": str(folder / "prompts.jsonl"),
            "concurrency": [1],
            "requests": 2,
            "max_tokens": 5,
        },
    }
    who = identity(DeploymentSpec.model_validate(content)).parameters(prefix_cache=True)
    server = start_triton(folder / "server", who=who)
    ports = {
        "grpc_port": server.grpc,
        "http_port": server.http,
        "metrics_port": server.metrics_url[7:].split("/")[0],
    }
    content["serving"] = {name: int(address.split(":")[1]) for name, address in ports.items()}
    yield folder, content
    server.triton.kill()


def loadtest(folder: Path, content: dict[str, Any], *arguments: str) -> tuple[int, str]:
    (folder / "spec.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(app, ["loadtest", str(folder / "spec.yaml"), *arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.triton
@pytest.mark.usefixtures("one_plot")
def test_the_right_server_is_measured_with_its_cache_as_asked_for(
    served: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, content = served
    for cache, words in (("cold", "cache_salt of its own"), ("warm", "read once just before its cell")):
        code, output = loadtest(folder, content, "--cache", cache, "--report", str(tmp_path / cache))
        assert code == 0, output
        report = json.loads((tmp_path / cache / "report.json").read_text())
        assert [arm["deployment"] for arm in report["arms"]] == ["a", "a"]
        assert all(words in arm["cache"] for arm in report["arms"])
        assert report["settings"]["cache"] == cache
    assert loadtest(folder, content, "--cache", "hot")[0] == 2


@pytest.mark.triton
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "b"}, "serves the deployment a, not b; stop it and serve b"),
        ({"speculation": {"method": "anpd", "ngram": 3}}, "serves a as another spec has it"),
    ],
)
@pytest.mark.parametrize("command", ["loadtest", "verify"])
def test_another_deployment_on_the_port_is_refused(
    served: tuple[Path, dict[str, Any]], tmp_path: Path, command: str, changes: dict[str, Any], told: str
) -> None:
    folder, content = served
    if command == "verify":
        write_tokenizer(folder, "byte-level")
    (folder / "spec.yaml").write_text(yaml.safe_dump({**content, **changes}))
    more = ["--report", str(tmp_path / "report")] if command == "loadtest" else []
    result = CliRunner().invoke(app, [command, str(folder / "spec.yaml"), *more])
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())


@pytest.mark.triton
def test_a_missing_server_beside_is_told_before_the_first_request(
    served: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, content = served
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    other = {**content, "name": "c", "serving": {**ports, "repository": "runs/c"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(other))
    report = str(tmp_path / "report")
    code, output = loadtest(folder, content, "--beside", str(folder / "c.yaml"), "--report", report)
    assert code == 2
    assert f"c: no Triton server answers grpc at 127.0.0.1:{ports['grpc_port']}" in output
    assert not (tmp_path / "report" / "cells").exists()


def test_vllm_needs_a_server_of_its_own_for_the_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = Path(__file__).parents[2] / "deployments"
    speculative, plain = (examples / f"smollm2-{name}-vllm.yaml" for name in ("eagle3", "plain"))
    result = CliRunner().invoke(app, ["loadtest", str(speculative)])
    assert result.exit_code == 2
    assert "name it here, and this one with --beside" in " ".join(result.output.split())
    settings = sweep_settings(load_spec(plain), [load_spec(speculative)], "grpc", 1)
    assert [(arm.name, arm.num_draft_tokens, arm.host) for arm in settings.arms] == [
        ("none", None, None),
        ("eagle3", None, "127.0.0.1:8001"),
    ]
