"""Qwen2, which has biases on queries, keys and values, and Qwen3, which normalises queries and keys instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from build.targets.families.record import (
    Family,
    GgufFormat,
    Settings,
    bias_settings,
    count,
    listed_sliding_layers,
)

if TYPE_CHECKING:
    from build.targets.gguf_file import GgufFile

_DEFAULTS = {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _sliding_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    if not settings.get("use_sliding_window"):
        return ()
    listed = listed_sliding_layers(settings, num_layers)
    if listed is not None:
        return listed
    return tuple(range(min(count(settings, "max_window_layers"), num_layers), num_layers))


def _qwen2_from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    return {"use_sliding_window": False}


def _qwen3_from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    return {"use_sliding_window": False, "attention_bias": bias_settings(file)["attention_bias"]}


QWEN2 = Family(
    model_type="qwen2",
    described="Qwen2 and Qwen2.5 (qwen2)",
    class_name="Qwen2ForCausalLM",
    gguf=GgufFormat("qwen2", settings=_qwen2_from_gguf),
    defaults=_DEFAULTS,
    qkv_bias=True,
    sliding_layers=_sliding_layers,
)
QWEN3 = Family(
    model_type="qwen3",
    described="Qwen3 (qwen3)",
    class_name="Qwen3ForCausalLM",
    gguf=GgufFormat("qwen3", settings=_qwen3_from_gguf),
    defaults={**_DEFAULTS, "head_dim": 128},
    bias_keys=frozenset({"attention_bias"}),
    qk_norm=True,
    sliding_layers=_sliding_layers,
)
