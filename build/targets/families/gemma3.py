"""Gemma 3, text (arXiv 2503.19786).

Five of six layers slide, with a rotary embedding of their own that is never scaled. Norms stand before and behind
attention and MLP and multiply by 1 + weight; queries and keys are normalised; the embedding is scaled by
sqrt(hidden size), and the softmax by a setting of its own instead of the head size.

GGUF files have 1 added to norm weights already, and leave to the reader what llama.cpp knows of the sizes that Google
released: one layer in six is full where no pattern is given, and the model of 62 layers divides by another scalar.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from build.targets.errors import UnsupportedModelError
from build.targets.families.record import (
    Activation,
    Family,
    GgufFormat,
    LayerNorms,
    Multipliers,
    Settings,
    count,
    listed_sliding_layers,
    positive,
    read_rope,
)
from build.targets.rope import Rope

if TYPE_CHECKING:
    from build.targets.gguf_file import GgufFile

_PATTERN = 6
_LOCAL_THETA = 10_000.0
_LAYERS_OF_27B = 62
_KINDS = ("full_attention", "sliding_attention")


def _sliding_layers(settings: Settings, num_layers: int) -> tuple[int, ...]:
    listed = listed_sliding_layers(settings, num_layers)
    if listed is not None:
        return listed
    pattern = count(settings, "sliding_window_pattern")
    return tuple(layer for layer in range(num_layers) if (layer + 1) % pattern)


def _ropes(settings: Settings) -> tuple[Rope, Rope]:
    """Transformers 5 keeps two under `rope_parameters`; before, only that of full layers could be scaled."""
    found = settings.get("rope_parameters")
    if found is None:
        found = {"full_attention": settings.get("rope_scaling")}
    unknown = sorted(set(found) - set(_KINDS))
    if unknown:
        raise UnsupportedModelError(
            f"config.json: rope_parameters has {', '.join(unknown)}; it must have {' and '.join(_KINDS)}"
        )
    thetas = (settings["rope_theta"], settings["rope_local_base_freq"])
    full, sliding = (
        read_rope(found.get(kind) or {}, theta, settings) for kind, theta in zip(_KINDS, thetas, strict=True)
    )
    return full, sliding


def _multipliers(settings: Settings) -> Multipliers:
    return Multipliers(
        embedding=math.sqrt(count(settings, "hidden_size")),
        attention=positive(settings, "query_pre_attn_scalar") ** -0.5,
    )


def _from_gguf(file: GgufFile, config: Settings) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    scaling = config["rope_scaling"]
    if scaling is not None and scaling["rope_type"] != "linear":
        raise UnsupportedModelError(
            f"{file.path}: rope scaling {scaling['rope_type']!r} is not supported for {file.architecture}; it must be "
            "none or linear"
        )
    scalar = config["head_dim"]
    if layers == _LAYERS_OF_27B:
        scalar = config["hidden_size"] // config["num_attention_heads"]
    return {
        "attention_bias": False,
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.setting("attention.sliding_window", int),
        "layer_types": [_KINDS[int(slides)] for slides in _pattern(file, layers)],
        "rope_local_base_freq": file.decimal("rope.freq_base_swa", _LOCAL_THETA),
    }


def _pattern(file: GgufFile, num_layers: int) -> list[bool]:
    """Which layers slide: a list of them, or a number n, every n-th layer being full."""
    key = "attention.sliding_window_pattern"
    if isinstance(file.content(f"{file.architecture}.{key}"), list):
        slides = file.setting(key, list)
        if len(slides) != num_layers:
            raise UnsupportedModelError(
                f"{file.path}: {key} has {len(slides)} entries for {num_layers} layers"
            )
        return [bool(each) for each in slides]
    pattern = file.setting(key, int, _PATTERN)
    if pattern < 1:
        raise UnsupportedModelError(f"{file.path}: {key} is {pattern}; it must be at least 1")
    return [bool((layer + 1) % pattern) for layer in range(num_layers)]


GEMMA3 = Family(
    model_type="gemma3_text",
    described="Gemma 3 text (gemma3_text)",
    class_name="Gemma3ForCausalLM",
    gguf=GgufFormat(
        "gemma3",
        norm_names={
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        settings=_from_gguf,
        neutral={"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0},
    ),
    defaults={
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": _PATTERN,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": _LOCAL_THETA,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    activation=Activation("gelu_tanh", "hidden_activation", ("gelu_pytorch_tanh",)),
    bias_keys=frozenset({"attention_bias"}),
    qk_norm=True,
    norms=LayerNorms(
        before_attention="input_layernorm",
        after_attention="post_attention_layernorm",
        before_mlp="pre_feedforward_layernorm",
        after_mlp="post_feedforward_layernorm",
    ),
    norm_offset=1.0,
    sliding_layers=_sliding_layers,
    ropes=_ropes,
    multipliers=_multipliers,
    neutral={
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "use_bidirectional_attention": (False, None),
    },
)
