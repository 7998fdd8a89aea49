"""The comparison of EAGLE-3 trainers gives both the same work and judges both as our trainer judges itself."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from deployments.cache import cache_directory  # noqa: E402
from deployments.spec import DeploymentSpec  # noqa: E402
from planner.bench.peers.environments import Environment, Unavailable, prepare_environment  # noqa: E402
from planner.bench.trainers.compare import LOCK, Comparison  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from tests.speculators.training.samples import write_directory, written_by  # noqa: E402
from tests.tiny import TinyTargets  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture
def comparison(tiny_targets: TinyTargets, tmp_path: Path) -> Comparison:
    """64 samples of a tiny target in four micro-batches, and 16 held out: enough that single guesses do not count."""
    source = tiny_targets.source("llama")
    samples = written_by(FrozenTarget(source, torch.device("cpu")), 512)
    write_directory(tmp_path / "training", source, samples)
    training = {
        "directory": tmp_path / "training",
        "epochs": 1,
        "batch_tokens": 512,
        "depth": 3,
        "unroll": 2,
        "layers": (1,),
    }
    content = {
        "name": "tiny",
        "target": {"model": source},
        "speculation": {"method": "eagle3", "checkpoint": tmp_path / "checkpoint"},
        "training": {**training, "draft_vocab_size": 256, "features": "online"},
    }
    (tmp_path / "out").mkdir()
    return Comparison(DeploymentSpec.model_validate(content), 64, 16, tmp_path / "out")


def test_the_judge_agrees_with_our_trainers_own_evaluation(comparison: Comparison, tmp_path: Path) -> None:
    found = comparison.ours()
    records = (tmp_path / "out" / "ours" / "records.jsonl").read_text().splitlines()
    own = [item for item in map(json.loads, records) if item["kind"] == "Evaluation"][-1]
    assert own["length"] > 1.02  # so that there is something to agree on
    # The checkpoint is bfloat16, and so are the products of the evaluation; a few guesses may turn.
    assert found.acceptance.length == pytest.approx(own["length"], abs=0.02)
    assert found.acceptance.interval[0] <= found.acceptance.length <= found.acceptance.interval[1]
    assert found.steps == len(records) - 1
    assert found.tokens_per_second > 0
    assert comparison.ours().steps == found.steps  # from the start again, not from where the last one ended


@pytest.fixture
def modelopt() -> Environment:
    try:
        return prepare_environment(LOCK, cache_directory() / "trainers")
    except Unavailable as reason:
        pytest.skip(f"nvidia-modelopt: {reason}")


@pytest.mark.outside
def test_model_optimizer_trains_on_the_same_micro_batches(
    comparison: Comparison, modelopt: Environment, tmp_path: Path
) -> None:
    theirs = comparison.modelopt(modelopt.python, modelopt.variables())
    ours = comparison.ours()
    counted = [
        [item["tokens"] for item in map(json.loads, path.read_text().splitlines()) if "loss" in item]
        for path in (tmp_path / "out" / "modelopt.jsonl", tmp_path / "out" / "ours" / "records.jsonl")
    ]
    assert counted[0] == counted[1] and len(counted[0]) == theirs.steps == ours.steps
    assert theirs.acceptance.length >= 1
