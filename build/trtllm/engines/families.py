"""Model families that TensorRT-LLM 1.2.1 compiles into engines through its examples, and what each can be given.

A family is known by the `model_type` of the target's config.json. Sources: MODEL_MAP in
`tensorrt_llm/models/__init__.py`, the converters in `examples/models/core`, REDRAFTER_MAP in
`examples/redrafter/convert_checkpoint.py`, and the model types of `examples/medusa/convert_checkpoint.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from build.trtllm.engines.tools import CONVERT_LLAMA, CONVERT_PHI, CONVERT_QWEN, Tool
from build.trtllm.releases import Refused
from deployments.spec import SpecError


@dataclass(frozen=True)
class Family:
    """A converter for checkpoints of one kind, and the drafting heads that engines of the family can carry."""

    converter: Tool
    heads: frozenset[str] = frozenset()
    pipeline_parallel: bool = True


_LLAMA = Family(CONVERT_LLAMA, frozenset({"medusa", "eagle", "redrafter"}))
_MISTRAL = Family(CONVERT_LLAMA, frozenset({"medusa", "eagle"}))
_PHI = Family(CONVERT_PHI, pipeline_parallel=False)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": _LLAMA,
        "mistral": _MISTRAL,
        "mixtral": _MISTRAL,
        "granite": Family(CONVERT_LLAMA),
        "granitemoe": Family(CONVERT_LLAMA),
        "qwen2": Family(CONVERT_QWEN, frozenset({"medusa", "redrafter"})),
        "qwen2_moe": Family(CONVERT_QWEN),
        "qwen3": Family(CONVERT_QWEN),
        "qwen3_moe": Family(CONVERT_QWEN),
        "phi": _PHI,
        "phi3": _PHI,
        "phimoe": _PHI,
    }
)

HEADS = frozenset({"medusa", "eagle", "redrafter"})


def family_of(model: Path, model_type: str | None, method: str) -> Family:
    """The family of a model, checked for what a method needs of it.

    Args:
        model: directory in Hugging Face layout.
        model_type: as in its config.json; None reads it there.
        method: of the spec's `speculation` section.

    Raises:
        SpecError: the model type is neither given nor readable.
        Refused: engines of this family do not exist, or do not carry the method's heads.
    """
    name = model_type or _read_model_type(model)
    if name not in FAMILIES:
        raise Refused(
            f"the kit builds no engines of model type {name} ({model}); it knows {', '.join(FAMILIES)}",
            "runtime: llm_api",
        )
    family = FAMILIES[name]
    if method in HEADS and method not in family.heads:
        able = [other for other, candidate in FAMILIES.items() if method in candidate.heads]
        raise Refused(
            f"TensorRT-LLM 1.2.1 puts no {method} heads on model type {name}, but on {', '.join(able)}",
            "method: draft_model, or prompt_lookup",
        )
    return family


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
