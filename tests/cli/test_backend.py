"""Commands that run a target in process take the backend that the spec names; PyTorch's needs no OpenVINO."""

import socket
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cli.main import app
from cli.train import _writer
from deployments.spec import load_spec
from speculators.data.samples import Sample
from speculators.data.writing import Task, Writing
from tests.tiny import TinyTargets, refuse_openvino

pytestmark = pytest.mark.torch


@pytest.fixture
def spec(tiny_targets: TinyTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment on PyTorch, compiled, whose server does not run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    content = {
        "name": "tiny",
        "target": {"model": str(tiny_targets.source("llama"))},
        "engine": {"backend": "torch", "precision": "fp32", "max_sequence_length": 256},
        "serving": {"host": "127.0.0.1", "grpc_port": port},
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    engine = tiny_targets.engine("llama", "fp32").resolve()
    monkeypatch.chdir(tmp_path)
    place = load_spec(path).engine_directory
    place.parent.mkdir(parents=True)
    place.symlink_to(engine)
    refuse_openvino(monkeypatch)
    return path


def test_verify_scores_on_the_backend_of_the_spec(spec: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question_id": 1, "category": "qa", "turns": ["Hi"]}\n', encoding="utf-8")
    result = CliRunner().invoke(app, ["verify", str(spec), "--prompts", str(prompts), "--max-tokens", "4"])
    assert result.exit_code == 2, result.exception
    assert "127.0.0.1" in result.output, "the one thing that is missing is the server"


def test_training_data_is_written_on_the_backend_of_the_spec(spec: Path) -> None:
    def task() -> Task:
        written = yield Writing((1, 2, 3), 5, seed=1)
        return Sample(0, "", (), (1, 2, 3, *written.tokens))

    (sample,) = _writer(load_spec(spec)).run([task()])
    assert len(sample.tokens) == 8
