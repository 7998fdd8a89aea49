"""Paths of the spec that lead nowhere."""

from collections.abc import Iterator
from pathlib import Path

from build.model_paths import is_hub_id, suggestion
from build.trtllm.methods.table import METHODS, drafter_directory
from build.trtllm.releases import Runtime
from deployments.findings import Finding
from deployments.spec import DeploymentSpec


def path_findings(spec: DeploymentSpec, runtime: Runtime | None = None) -> Iterator[Finding]:
    """A finding for each model or data set that is not there.

    Args:
        spec: the deployment.
        runtime: the LLM API fetches models from the Hugging Face hub, engines are built from what is here; None: not
            known yet, and neither is refused.
    """
    paths = model_paths(spec)
    for key, path in paths.items():
        if path.exists():
            continue
        if runtime != "engines" and is_hub_id(path):
            if runtime is not None:
                yield Finding(
                    "model-missing",
                    "warning",
                    f"{key}: {path} does not exist here; the server will take it for a model on the Hugging Face hub"
                    + _unconverted(spec, key),
                    f"the model in {path}",
                )
            continue
        fetched = spec.target.source is not None and path == spec.target.model
        if not fetched:
            yield Finding(
                "model-missing",
                "error",
                f"{key}: {path} does not exist{suggestion(path, paths.values())}",
                f"the model in {path}",
            )
    data = spec.tensorrt_llm.calibration_dataset
    if data is not None and _is_local(data) and not Path(data).exists():
        yield Finding(
            "calibration-data-missing",
            "error",
            f"engine.calibration_dataset: {data} does not exist{suggestion(Path(data))}",
            "a directory that is there, or the name of a data set on the Hugging Face hub",
        )


def model_paths(spec: DeploymentSpec) -> dict[str, Path]:
    """The keys of the spec that name models, with what they name; the target once, though it may draft for itself."""
    paths = {"target.model": spec.target.model}
    drafter = drafter_directory(spec)
    if drafter is not None and drafter != spec.target.model:
        paths["speculation.model" if hasattr(spec.speculation, "model") else "speculation.checkpoint"] = (
            drafter
        )
    return paths


def _unconverted(spec: DeploymentSpec, key: str) -> str:
    """Drafters come in layouts that line A does not load, and those on the hub cannot be converted."""
    unread = METHODS[spec.speculation.method].llm_api.converted and key == "speculation.checkpoint"
    return (
        ", in the layout that it has there (line A loads that of the EAGLE repository alone)"
        if unread
        else ""
    )


def _is_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or ("/" in name and not is_hub_id(Path(name)))
