"""Tensor and pipeline parallelism against the sizes of the models that are split."""

from collections.abc import Iterator
from pathlib import Path

from build.targets.errors import TargetError
from build.trtllm.checks.checkpoints import HuggingFaceCheckpoint
from build.trtllm.checks.paths import model_paths
from build.trtllm.resolved import Supported
from deployments.findings import Finding
from deployments.spec import DeploymentSpec

_MOST = 64


def parallelism_findings(spec: DeploymentSpec, support: Supported | None = None) -> Iterator[Finding]:
    """A finding for each model that does not split over its GPUs; one that cannot be read is told elsewhere.

    Args:
        spec: the deployment.
        support: how it drafts; None: not known, and the target alone is looked at.
    """
    engine = spec.tensorrt_llm
    for key, path in model_paths(spec).items():
        model = _read(path)
        if model is None or (support is None and key != "target.model"):
            continue
        draft = key != "target.model" and support is not None and support.drafting == "draft_engine"
        own = draft and engine.draft.tensor_parallel is not None
        ranks = engine.draft.tensor_parallel if own else engine.tensor_parallel
        place = "engine.draft.tensor_parallel" if own else "engine.tensor_parallel"
        assert ranks is not None
        if engine.llm_args.get("enable_attention_dp") is not True:
            yield from _heads(model, key, ranks, place)
        if key == "target.model":
            yield from _layers(model, engine.pipeline_parallel)


def _heads(model: HuggingFaceCheckpoint, key: str, ranks: int, place: str) -> Iterator[Finding]:
    """Every rank has as many heads; of fewer key and value heads than ranks, each is there several times."""
    heads = model.number("num_attention_heads", "n_head")
    if not heads:
        return
    kv_heads = model.number("num_key_value_heads") or heads
    width = model.number("intermediate_size", "n_inner") or ranks
    sizes = {"attention heads": heads, "key and value heads": kv_heads, "columns of its MLP": width}
    wrong = [
        f"{count} {name}"
        for name, count in sizes.items()
        if count % ranks and not (name == "key and value heads" and ranks % count == 0)
    ]
    if wrong:
        right = [count for count in range(1, _MOST + 1) if _splits(heads, kv_heads, width, count)]
        yield Finding(
            "tensor-parallel-heads",
            "error",
            f"{place} {ranks} does not divide {key}: it has {' and '.join(wrong)}",
            f"{place.removeprefix('engine.')}: {' or '.join(map(str, right))}",
            "TensorRT-LLM layers/attention.py, _torch/modules/attention.py",
        )


def _splits(heads: int, kv_heads: int, width: int, ranks: int) -> bool:
    return not (heads % ranks or width % ranks) and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def _layers(model: HuggingFaceCheckpoint, stages: int) -> Iterator[Finding]:
    if model.num_layers is not None and model.num_layers < stages:
        yield Finding(
            "pipeline-parallel-layers",
            "error",
            f"engine.pipeline_parallel {stages} is more than the {model.num_layers} layers of target.model",
            f"pipeline_parallel: {model.num_layers} or less",
        )


def _read(path: Path) -> HuggingFaceCheckpoint | None:
    try:
        return HuggingFaceCheckpoint(path)
    except TargetError:
        return None
