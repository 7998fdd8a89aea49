"""A tiny target, conversations that it wrote, and jobs on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from deployments.training import TrainingSpec  # noqa: E402
from speculators.data.samples import Sample  # noqa: E402
from speculators.training.run import Job  # noqa: E402
from speculators.training.target import FrozenTarget  # noqa: E402
from tests.speculators.training.samples import write_directory, written_by  # noqa: E402
from tests.tiny import TinyTargets  # noqa: E402

MakeJob = Callable[..., Job]


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
        values: dict[str, Any] = {
            "directory": directory,
            "depth": 3,
            "unroll": 3,
            "draft_vocab_size": 200,
            "batch_tokens": 256,
            "device": "cpu",
            "mixed_precision": False,
            **settings,
        }
        spec = TrainingSpec.model_validate(values)
        return Job(method, method, tiny_source, tmp_path / f"{name}-checkpoint", spec)

    return make
