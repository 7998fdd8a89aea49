"""Where `drafthouse serve` finds vLLM and the server to put it behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from build.vllm.arguments import draft_directory
from cli import vllm
from deploy.place import Place, remove
from deploy.server import TritonError
from deploy.triton import TritonServer
from deploy.trtllm_server import TensorRtLlmServer
from deployments.files.directories import DirectoryInUseError, replace_directory
from deployments.spec import DeploymentSpec
from engine.vllm.releases import IMAGE
from planner.bench.peers.environments import Environment
from tests.deploy.stand_in_server import StandIn
from tests.end_to_end.tiny_tokenizers import write_tokenizer

MARK = "drafthouse.json"


@pytest.fixture
def spec(tmp_path: Path) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {
            "name": "x",
            "target": {"model": "m"},
            "engine": {"kind": "vllm"},
            "serving": {
                "repository": tmp_path / "repository",
                "http_port": 1,
                "grpc_port": 2,
                "metrics_port": 3,
            },
        }
    )


@pytest.fixture
def place() -> Iterator[Place]:
    taken = Place.take()
    yield taken
    remove(taken.name)
    taken.give_up()


def test_nvidias_server_serves_where_it_is_installed(
    spec: DeploymentSpec, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "tritonserver"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    server = vllm._server(spec, Environment(tmp_path), tmp_path / "log")
    assert isinstance(server, TensorRtLlmServer)
    arguments, _ = server._command(place)
    assert arguments[0] == str(program) and str(spec.serving.repository) in " ".join(arguments)


def test_the_wheels_server_gets_the_environment_of_the_models(
    spec: DeploymentSpec, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    server = vllm._server(spec, Environment(tmp_path), tmp_path / "log")
    assert isinstance(server, TritonServer)
    _, variables = server._command(place)
    assert variables["PATH"].split(":")[0] == str(tmp_path / "bin")
    assert variables["PYTHONPATH"] == str(packages), "nothing of the kit's own environment"


def test_a_machine_with_gpus_but_without_vllm_starts_its_container(
    spec: DeploymentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path / "cache"))
    said = tmp_path / "said"
    for name, lines in {
        "nvidia-smi": "echo 'GPU one, 80 GB'",
        "docker": f'echo "$DRAFTHOUSE_SPEC $*" > {said}',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    vllm.serve_vllm(spec, Path("deployments/x.yaml"), tmp_path / "log")
    assert said.read_text().split() == [
        "deployments/x.yaml",
        *("compose", "--env-file", "deploy/compose/vllm.env", "up", "--wait", "triton", "front"),
    ]
    assert capsys.readouterr().out.splitlines()[-1] == "serve: stop it with docker compose down"
    (tmp_path / "docker").unlink()
    with pytest.raises(TritonError, match=f"run this inside {IMAGE}"):
        vllm.serve_vllm(spec, Path("deployments/x.yaml"), tmp_path / "log")


def test_what_is_being_served_is_not_replaced(
    spec: DeploymentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.files.directories._PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(vllm, "_server", lambda spec, environment, log: StandIn(log))
    places = spec.serving.repository, draft_directory(spec)
    for place in places:
        made(place, "served")
    with vllm._running(spec, Environment(tmp_path), tmp_path / "log"):
        for place in places:
            with pytest.raises(DirectoryInUseError, match="is read by a running server"):
                made(place, "another")
    for place in places:
        made(place, "another")


def made(place: Path, content: str) -> None:
    with replace_directory(place, MARK) as staging:
        (staging / MARK).write_text("{}")
        (staging / "content").write_text(content)


def test_a_path_in_brackets_is_told_as_it_is(
    spec: DeploymentSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vllm, "installed_vllm", lambda: None)
    place = tmp_path / "[red]repository"
    target = spec.target.model_copy(update={"model": write_tokenizer(tmp_path / "target", "byte-level")})
    serving = spec.serving.model_copy(update={"repository": place})
    vllm.build_vllm(spec.model_copy(update={"target": target, "serving": serving}))
    assert capsys.readouterr().out.splitlines()[-1] == f"build: model repository in {place}"
