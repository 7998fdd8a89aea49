"""Model families that TensorRT-LLM 1.2.1 compiles into engines through its examples, and what each can be given.

A family is known by the `model_type` of the target's config.json. Sources: MODEL_MAP in
`tensorrt_llm/models/__init__.py` and the converters in `examples/models/core`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from build.trtllm.engines.tools import CONVERT_LLAMA, CONVERT_PHI, CONVERT_QWEN, Tool
from build.trtllm.methods.table import method_of
from build.trtllm.releases import not_in_line
from build.trtllm.resolved import Resolved
from deployments.findings import Finding
from deployments.spec import SpecError


@dataclass(frozen=True)
class Family:
    """A converter for checkpoints of one kind."""

    converter: Tool
    pipeline_parallel: bool = True


_LLAMA, _QWEN = Family(CONVERT_LLAMA), Family(CONVERT_QWEN)
_PHI = Family(CONVERT_PHI, pipeline_parallel=False)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(("llama", "mistral", "mixtral", "granite", "granitemoe"), _LLAMA),
        **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), _QWEN),
        **dict.fromkeys(("phi", "phi3", "phimoe"), _PHI),
    }
)


def family_findings(resolved: Resolved, model: Path, model_type: str | None) -> Iterator[Finding]:
    """What engines of a model's family cannot do of the deployment; nothing, if `family_of` has one that can.

    Args:
        resolved: the deployment.
        model: directory in Hugging Face layout.
        model_type: as in its config.json; None reads it there.
    """
    try:
        name = model_type or _read_model_type(model)
    except SpecError as error:
        yield Finding("spec", "error", str(error))
        return
    family, heads = FAMILIES.get(name), method_of(resolved).engines.heads
    if family is None:
        yield not_in_line(
            f"the kit builds no engines of model type {name} ({model}); it knows {', '.join(FAMILIES)}",
            "runtime: llm_api",
        )
        return
    if heads is not None and name not in heads.model_types:
        yield not_in_line(
            f"TensorRT-LLM 1.2.1 puts no {resolved.method} heads on model type {name}, but on "
            f"{', '.join(heads.model_types)}",
            "method: draft_model, or prompt_lookup",
        )
    parallel = resolved.engine.pipeline_parallel
    if parallel > 1 and not family.pipeline_parallel:
        yield not_in_line(
            f"{family.converter.name} has no pipeline parallelism (engine.pipeline_parallel: {parallel})",
            f"pipeline_parallel: 1 with tensor_parallel: {resolved.engine.tensor_parallel * parallel}",
        )


def family_of(model: Path, model_type: str | None) -> Family:
    """The family of a model of which `family_findings` has none."""
    return FAMILIES[model_type or _read_model_type(model)]


def _read_model_type(model: Path) -> str:
    path = model / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError:
        raise SpecError(
            f"{path} does not exist, and which converter the model needs depends on its model type; "
            "fetch the model or write target.model_type"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SpecError(f"{path} does not say its model_type: {error!r}") from error
    if not isinstance(found, str):
        raise SpecError(f"{path} has a model_type that is no name: {found!r}")
    return found
