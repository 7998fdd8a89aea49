"""Rotary embedding of a GGUF file, read as llama.cpp's loader reads it (`src/llama-model.cpp`, `load_hparams`).

The rule is `rope.scaling.type`, and *linear* where the file has none; its factor is `rope.scaling.factor`, in older
files `rope.scale_linear`, and 0 or nothing means 1. `rope.scaling.attn_factor` multiplies cos and sin under every rule.
YaRN's original context is the trained one where the file does not say, and its betas are llama.cpp's own: for the
families here the keys that would change them are not read there. Llama 3.1's rule is no rule in GGUF but a tensor of
divisors, `rope_freqs.weight`, which llama.cpp applies beside the others.

What llama.cpp would not compute, or what `config.json` cannot say, is refused by name.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from build.targets.errors import UnsupportedModelError
from build.targets.gguf_file import GgufFile, shortest
from build.targets.rope import Llama3Scaling, inverse_frequencies

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of Llama 3.1's rule; read into the configuration, not a weight."""

# Keys that llama.cpp does not read for these families, and the values at which they would say nothing anyway.
_UNREAD: Mapping[str, tuple[float, ...]] = {"alpha": (0.0,)}
_UNREAD_YARN: Mapping[str, tuple[float, ...]] = {
    "yarn_beta_fast": (32.0,),
    "yarn_beta_slow": (1.0,),
    "yarn_ext_factor": (1.0, -1.0),
    "yarn_attn_factor": (1.0,),
    "yarn_log_multiplier": (0.0,),
}
# Llama 3.1 and 3.2 use these with factors 8 and 32; GGUF keeps only the resulting table.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def rope_fields(file: GgufFile, head_dim: int, context_length: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of `config.json`.

    Raises:
        UnsupportedModelError: the file has a rule, or a setting of one, that is not supported.
        TargetError: a value is of another type.
    """
    theta = file.decimal("rope.freq_base", 10_000.0)
    return {"rope_theta": theta, "rope_scaling": _scaling(file, theta, head_dim, context_length)}


def _scaling(file: GgufFile, theta: float, head_dim: int, context_length: int) -> dict[str, Any] | None:
    kind = file.setting("rope.scaling.type", str, "linear")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModelError(
            f"{file.path}: rope scaling {kind!r} is not supported; it must be none, linear, yarn or "
            "the rule of Llama 3.1"
        )
    _refuse_unread(file, _UNREAD)
    factor = 1.0 if kind == "none" else _factor(file)
    attention = file.decimal("rope.scaling.attn_factor", 1.0)
    has_table = ROPE_FACTORS in file.tensor_names
    if factor == 1.0 and attention == 1.0:
        return _llama3(file, theta, head_dim) if has_table else None
    if has_table:
        raise UnsupportedModelError(
            f"{file.path}: rope is scaled twice, by tensor {ROPE_FACTORS} and by rope.scaling of type {kind} with "
            f"factor {factor:g}; use the model's Hugging Face directory"
        )
    if kind == "yarn":
        return _yarn(file, factor, attention, context_length)
    if attention != 1.0:
        raise UnsupportedModelError(
            f"{file.path}: rope.scaling.attn_factor {attention:g} is not supported with rope scaling {kind!r}; it "
            "must be 1"
        )
    return {"rope_type": "linear", "factor": factor}


def _factor(file: GgufFile) -> float:
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if file.has(f"{file.architecture}.{key}"):
            factor = file.decimal(key) or 1.0
            if not 1.0 <= factor < math.inf:
                raise UnsupportedModelError(
                    f"{file.path}: {key} is {factor:g}; it must be at least 1, or 0 for no scaling"
                )
            return factor
    return 1.0


def _yarn(file: GgufFile, factor: float, attention: float, context_length: int) -> dict[str, Any]:
    _refuse_unread(file, _UNREAD_YARN)
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": file.setting(
            "rope.scaling.original_context_length", int, context_length
        ),
    }
    if attention != 1.0:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
    return scaling


def _refuse_unread(file: GgufFile, neutral: Mapping[str, tuple[float, ...]]) -> None:
    for key, values in neutral.items():
        found = file.decimal(f"rope.scaling.{key}", values[0])
        if found not in values:
            raise UnsupportedModelError(
                f"{file.path}: rope.scaling.{key} {found:g} is not supported, and llama.cpp does not read it for "
                f"{file.architecture}; use the model's Hugging Face directory"
            )


def _llama3(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recognise Llama 3.1's rule in the table of divisors that GGUF stores in its place: [head_dim / 2]."""
    divisors = file.tensor(ROPE_FACTORS)
    factor = shortest(float(divisors.max()))
    rule = Llama3Scaling(factor, _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT)
    plain = inverse_frequencies(theta, head_dim, None)
    if divisors.shape != plain.shape or not np.allclose(
        divisors, plain / rule.apply(plain, theta), rtol=1e-3
    ):
        raise UnsupportedModelError(
            f"{file.path}: tensor {ROPE_FACTORS} is not the rope rule of Llama 3.1, the only one known "
            "to be stored so; use the model's Hugging Face directory"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_max_position_embeddings,
    }
