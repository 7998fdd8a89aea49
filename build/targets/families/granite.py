"""Granite 3, dense: Llama with four constant factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from build.targets.families.record import Family, GgufFormat, Multipliers, Settings, bias_settings, positive

if TYPE_CHECKING:
    from build.targets.gguf_file import GgufFile


def _multipliers(settings: Settings) -> Multipliers:
    return Multipliers(
        embedding=positive(settings, "embedding_multiplier", 1.0),
        attention=positive(settings, "attention_multiplier", 1.0),
        residual=positive(settings, "residual_multiplier", 1.0),
        logits_divisor=positive(settings, "logits_scaling", 1.0),
    )


def _from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    """llama.cpp demands the last factor alone, and 0 or nothing stands for none of the others."""
    scale = file.decimal("attention.scale", 0.0)
    return {
        **bias_settings(file),
        "embedding_multiplier": file.decimal("embedding_scale", 1.0) or 1.0,
        "attention_multiplier": scale or config["head_dim"] ** -0.5,
        "residual_multiplier": file.decimal("residual_scale", 1.0) or 1.0,
        "logits_scaling": file.decimal("logit_scale"),
    }


GRANITE = Family(
    model_type="granite",
    described="Granite 3 dense (granite)",
    class_name="GraniteForCausalLM",
    gguf=GgufFormat(
        "granite",
        reordered=True,
        has_rope_factors=True,
        settings=_from_gguf,
        neutral={"rope.scaling.finetuned": True},  # it switches the rotary embedding off
    ),
    bias_keys=frozenset({"attention_bias", "mlp_bias"}),
    multipliers=_multipliers,
)
