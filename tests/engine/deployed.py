"""A deployment of a tiny target, opened as a server does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.compile import compile_engine
from deployments.spec import DeploymentSpec
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_engine
from engine.engine import Engine
from tests.tiny import MAX_LENGTH, THREADS, TinyTargets


def deployment(
    speculation: Mapping[str, Any], model: str | Path = "nowhere", **engine: Any
) -> DeploymentSpec:
    """The spec; `engine` adds to that section."""
    limits = {"max_batch_size": 2, "max_sequence_length": MAX_LENGTH, "threads": THREADS}
    return DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": model},
            "engine": {**limits, **engine},
            "speculation": dict(speculation),
        }
    )


def opened(
    speculation: Mapping[str, Any],
    targets: TinyTargets,
    directory: Path,
    drafts: Path = Path("none"),
    **engine: Any,
) -> tuple[Engine, CompiledRunner]:
    """The engine of such a deployment, and its runner; `drafts` is what was compiled for its method, if anything is."""
    spec = deployment(speculation, targets.source("llama"), **engine)
    compile_engine(spec.target.model, directory, precision="int8", max_sequence_length=MAX_LENGTH)
    return open_engine(spec, directory, {spec.name: drafts})
