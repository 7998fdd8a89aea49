"""A tiny target, conversations that it wrote, and jobs on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from deployments.training import TrainingSpec  # noqa: E402
from speculators.data.samples import Sample  # noqa: E402
from speculators.training.run import Job, train  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from tests.speculators.training.samples import ignore, write_directory, written_by  # noqa: E402
from tests.tiny import TinyTargets  # noqa: E402

MakeJob = Callable[..., Job]
SHORT = {"epochs": 1, "batch_tokens": 2048}  # some steps


@pytest.fixture(scope="session")
def tiny_source(tiny_targets: TinyTargets) -> Path:
    """Directory of a tiny target in Hugging Face layout."""
    return tiny_targets.source("llama")


@pytest.fixture(scope="session")
def tiny_target(tiny_source: Path) -> FrozenTarget:
    """The same, loaded."""
    return FrozenTarget(tiny_source, torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_samples(tiny_target: FrozenTarget) -> list[Sample]:
    """Conversations that it answered greedily."""
    return written_by(tiny_target, 256)


@pytest.fixture
def make_job(tmp_path: Path, tiny_source: Path, tiny_samples: list[Sample], no_curves: None) -> MakeJob:
    """A job in the directory `name`; keyword arguments are settings of its `training` section."""

    def make(method: str, name: str = "run", **settings: Any) -> Job:
        directory = tmp_path / name
        if not directory.exists():
            write_directory(directory, tiny_source, tiny_samples)
        checkpoint = tmp_path / f"{name}-checkpoint"
        return Job(method, method, tiny_source, checkpoint, section(directory, **settings))

    return make


@pytest.fixture(scope="session")
def checkpoint_of(
    tmp_path_factory: pytest.TempPathFactory, tiny_source: Path, tiny_samples: list[Sample]
) -> Callable[[str], Path]:
    """Checkpoint of a method that was trained for a few steps; to be read only."""
    root = tmp_path_factory.mktemp("trained")
    write_directory(root / "run", tiny_source, tiny_samples)

    def trained(method: str) -> Path:
        job = Job(method, method, tiny_source, root / method, section(root / "run", **SHORT))
        if not job.checkpoint.exists():
            train(job, ignore, ignore)
        return job.checkpoint

    return trained


def section(directory: Path, **settings: Any) -> TrainingSpec:
    """A `training` section for the tiny target."""
    values: dict[str, Any] = {
        "directory": directory,
        "depth": 3,
        "unroll": 3,
        "draft_vocab_size": 200,
        "batch_tokens": 256,
        "device": "cpu",
        "mixed_precision": False,
    }
    return TrainingSpec.model_validate({**values, **settings})
