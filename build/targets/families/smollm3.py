"""SmolLM3: Llama, but every fourth layer does not rotate queries and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from build.targets.errors import TargetError
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


def _unrotated_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    # In the file 1 means "rotates", whatever the name of the list suggests.
    rotates = settings.get("no_rope_layers")
    if rotates is None:
        interval = count(settings, "no_rope_layer_interval")
        return tuple(range(interval - 1, num_layers, interval))
    if len(rotates) < num_layers:
        raise TargetError(f"config.json: no_rope_layers has {len(rotates)} entries for {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not rotates[layer])


def _sliding_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    if not settings.get("use_sliding_window"):
        return ()
    listed = listed_sliding_layers(settings, num_layers)
    return _unrotated_layers(settings, num_layers) if listed is None else listed


def _from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    """llama.cpp fixes the interval; the file does not carry it."""
    layers = range(1, config["num_hidden_layers"] + 1)
    return {**bias_settings(file), "no_rope_layers": [int(layer % 4 != 0) for layer in layers]}


SMOLLM3 = Family(
    model_type="smollm3",
    described="SmolLM3 (smollm3)",
    class_name="SmolLM3ForCausalLM",
    gguf=GgufFormat("smollm3", reordered=True, settings=_from_gguf),
    defaults={
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "no_rope_layer_interval": 4,
        "bos_token_id": 128_000,
        "eos_token_id": 128_001,
    },
    bias_keys=frozenset({"attention_bias", "mlp_bias"}),
    sliding_layers=_sliding_layers,
    unrotated_layers=_unrotated_layers,
)
