"""Llama, and Mistral, which is Llama with a sliding window in all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from build.targets.families.record import Family, GgufFormat, Settings, bias_settings, every_layer

if TYPE_CHECKING:
    from build.targets.gguf_file import GgufFile


def _from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    return bias_settings(file)


LLAMA = Family(
    model_type="llama",
    described="Llama (also SmolLM and SmolLM2; model type llama)",
    class_name="LlamaForCausalLM",
    gguf=GgufFormat("llama", reordered=True, has_rope_factors=True, settings=_from_gguf),
    bias_keys=frozenset({"attention_bias", "mlp_bias"}),
)
MISTRAL = Family(
    model_type="mistral",
    described="Mistral (mistral)",
    class_name="MistralForCausalLM",
    gguf=None,  # its files say llama
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "sliding_window": 4096},
    sliding_layers=every_layer,
)
