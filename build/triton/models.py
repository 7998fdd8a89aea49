"""Models of a Triton repository before they are written, so that what is wrong with any of them is known at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.triton.model_config import set_parameters, staged, write_model
from build.triton.parameters import unknown_models
from build.triton.tensors import TEXT_MODELS
from deployments.findings import make_all, require_none


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository: its `ModelConfig`, and the files of its version."""

    config: Any
    files: Mapping[str, Path | str]


Planned = Mapping[str, Callable[[], TritonModel]]
"""The models of a repository by name, each made when it is called."""


def make_models(planned: Planned, overrides: Mapping[str, Mapping[str, str]]) -> list[TritonModel]:
    """Make all models.

    Args:
        planned: the models.
        overrides: the spec's `engine.triton_parameters`.

    Raises:
        UnsupportedDeployment: parameters that do not exist, or are of models that do not, or have a wrong form; and
            whatever else a model cannot be made of.
    """

    def known() -> None:
        require_none(unknown_models(overrides, list(planned)))

    models = make_all([known, *planned.values()])
    return [model for model in models if model is not None]


def identify(models: Sequence[TritonModel], identity: Mapping[str, str]) -> None:
    """Let the models that take text say which deployment they are."""
    for model in models:
        if model.config.name in TEXT_MODELS:
            set_parameters(model.config, identity)


def write_repository(repository: Path, models: Sequence[TritonModel]) -> Path:
    """Write a repository; one that is there is replaced."""
    with staged(repository) as staging:
        for model in models:
            write_model(staging, model.config, model.files)
    return repository
