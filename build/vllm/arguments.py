"""Arguments of vLLM's engine (`AsyncEngineArgs`) for a deployment.

Example::

    engine_arguments(load_spec(Path("deployments/smollm2-eagle3-vllm.yaml")), Path.cwd())["max_num_seqs"]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from engine.vllm.methods import CHECKPOINT, KIT_KEY, VllmMethod, vllm_method
from engine.vllm.speculation import engine_settings
from speculators.draft_model.checkpoint import is_whole

_GIB = 2**30


def engine_arguments(spec: DeploymentSpec, root: Path) -> dict[str, Any]:
    """What the deployment sets, under `engine.arguments`, which repeats nothing of it (`build.vllm.checks`).

    Args:
        spec: a deployment whose engine is vLLM.
        root: directory that the server resolves the spec's paths against.

    Raises:
        UnsupportedDeployment: vLLM does not do what the `speculation` section asks for.
    """
    engine = spec.vllm
    arguments: dict[str, Any] = {
        "model": located(spec.target.model, root),
        "dtype": engine.dtype,
        "quantization": engine.quantization,
        "tensor_parallel_size": engine.tensor_parallel,
        "pipeline_parallel_size": engine.pipeline_parallel,
        "max_num_seqs": engine.max_batch_size,
        "max_model_len": engine.max_sequence_length,
        "max_num_batched_tokens": engine.max_num_tokens,
        "gpu_memory_utilization": engine.memory_fraction,
        "kv_cache_memory_bytes": None if engine.kv_cache_gib is None else int(engine.kv_cache_gib * _GIB),
        "enable_prefix_caching": engine.kv_cache_reuse,
        "enforce_eager": engine.enforce_eager or None,
        **_speculation(spec, root),
    }
    return {key: value for key, value in arguments.items() if value is not None} | engine.arguments


def draft_directory(spec: DeploymentSpec) -> Path:
    """Where a draft model that was kept without its embedding is completed; no deployment has such a name."""
    repository = spec.serving.repository
    return repository.parent / f"{repository.name}+draft"  # `.` and `/` have no name


def located(path: Path, root: Path) -> str:
    """A model's directory as the server finds it; a hub id stays as it is."""
    return str(root / path) if (root / path).exists() else str(path)


def incomplete_draft(spec: DeploymentSpec) -> Path | None:
    """The draft model, if it was kept without its embedding."""
    source, method = drafter_source(spec.speculation), vllm_method(spec.speculation)
    completes = isinstance(method, VllmMethod) and method.completes_draft
    return None if source is None or not completes or is_whole(source) else source


def _speculation(spec: DeploymentSpec, root: Path) -> dict[str, Any]:
    settings = engine_settings(spec.speculation, spec.vllm.max_batch_size)
    config, method = settings.get("speculative_config", {}), vllm_method(spec.speculation)
    completed = draft_directory(spec)
    if incomplete_draft(spec) is not None and completed.is_dir():
        config["model"] = str(root / completed)
    elif "model" in config and isinstance(method, VllmMethod) and not method.is_class:
        config["model"] = located(Path(config["model"]), root)
    told = settings.get("additional_config", {}).get(KIT_KEY, {})
    if CHECKPOINT in told:
        told[CHECKPOINT] = located(Path(told[CHECKPOINT]), root)
    return settings
