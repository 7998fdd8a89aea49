"""A GGUF file's hyper-parameters and tensors in Hugging Face terms.

Background. llama.cpp stores a model under its own names, and for the architectures that use its adjacent-pair
rotary kernel (Llama, Granite, SmolLM3) it also reorders the rows of the query and key projections, so that
the pair (i, i + d/2) of Hugging Face lies at (2i, 2i + 1). Both are undone here. Qwen files keep their rows.

Storage. float32, float16 and bfloat16 tensors keep their type and so their exact values. Quantised tensors
are dequantised in float32 and stored as float16, rounded to nearest, for half the size of float32: relative
error at most 2**-11, two orders below the step of the quantisation itself. Measured on SmolLM2-135M from Q4_1
against exact values: logits, which span 70, move by 0.006 on average and by 0.04 at most; the distribution of
the next token by a divergence of 3e-5.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build.targets.architecture import Architecture, refuse_family
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.gguf_file import GgufFile, shortest
from build.targets.rope import Llama3Scaling, inverse_frequencies
from build.targets.storage import TensorPlan

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
_REORDERED = frozenset({"llama", "granite", "smollm3"})

_OUTER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# Frequency factors of Llama 3.1's rule; read into the configuration, not a weight.
_ROPE_FACTORS = "rope_freqs.weight"

_STORAGE = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_QUANTISED_STORAGE = "F16"
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_UNSUPPORTED_YARN = ("alpha", "attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor")

# Llama 3.1 and 3.2 use these with factors 8 and 32; GGUF keeps only the resulting table.
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192


def huggingface_config(file: GgufFile) -> dict[str, Any]:
    """The `config.json` that describes the model, without token ids (the tokenizer has those).

    Raises:
        UnsupportedModelError: another architecture, experts, or a rope rule that is not supported.
        TargetError: hyper-parameters are missing or contradict each other.
    """
    family = file.architecture
    if family not in _CLASSES:
        raise refuse_family(family, str(file.path))
    if file.setting("expert_count", int, 0) > 0:
        raise refuse_family(f"{family} with experts (mixture of experts)", str(file.path))
    config: dict[str, Any] = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "vocab_size": file.tensor_shape(_existing(file, "token_embd.weight"))[0],
        **_sizes(file),
        "hidden_act": "silu",
        "rms_norm_eps": shortest(file.setting("attention.layer_norm_rms_epsilon", float)),
        "tie_word_embeddings": "output.weight" not in file.tensor_names,
        "torch_dtype": _TORCH_NAMES[_storage(file, "blk.0.ffn_down.weight")],
    }
    config.update(_rope(file, config))
    config.update(_family_fields(file, config))
    return config


def tensor_plans(file: GgufFile, architecture: Architecture) -> list[TensorPlan]:
    """How each tensor of the checkpoint is produced from the file.

    Raises:
        TargetError: a tensor is missing, unexpected, or of another shape than the hyper-parameters say.
    """
    shapes = architecture.parameter_shapes()
    sources = {name: _gguf_name(name) for name in shapes}
    missing = sorted(set(sources.values()) - file.tensor_names)
    unexpected = sorted(file.tensor_names - set(sources.values()) - {_ROPE_FACTORS})
    if missing or unexpected:
        raise TargetError(
            f"{file.path}: the tensors do not fit a {architecture.family} model; "
            f"missing: {', '.join(missing[:4]) or 'none'}; unexpected: {', '.join(unexpected[:4]) or 'none'}"
        )
    return [_plan(file, architecture, name, shapes[name], sources[name]) for name in shapes]


def _plan(
    file: GgufFile, architecture: Architecture, name: str, shape: tuple[int, ...], source: str
) -> TensorPlan:
    if file.tensor_shape(source) != shape:
        raise TargetError(
            f"{file.path}: tensor {source} has shape {list(file.tensor_shape(source))}; "
            f"the metadata says {list(shape)}"
        )
    produce: Callable[[], NDArray[Any]] = partial(file.tensor, source)
    heads = _reordered_heads(architecture, name)
    if heads:
        produce = partial(_restored, file, source, heads)
    return TensorPlan(name, _storage(file, source), shape, produce)


def _reordered_heads(architecture: Architecture, name: str) -> int:
    """Number of heads in a projection whose rows llama.cpp reorders; 0 where it does not."""
    if architecture.family not in _REORDERED:
        return 0
    if ".q_proj." in name:
        return architecture.num_heads
    return architecture.num_kv_heads if ".k_proj." in name else 0


def _restored(file: GgufFile, source: str, heads: int) -> NDArray[np.float32]:
    return restore_rows(file.tensor(source), heads)


def restore_rows(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's reordering of the rows of a query or key projection: [heads * head_dim, ...], same
    shape.

    Row 2i + s of a head (s = 0, 1) goes back to row i + s * head_dim / 2.
    """
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _gguf_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_LAYER_NAMES[module]}.{kind}"


def _storage(file: GgufFile, source: str) -> str:
    return _STORAGE.get(file.tensor_type(_existing(file, source)), _QUANTISED_STORAGE)


def _existing(file: GgufFile, source: str) -> str:
    if source not in file.tensor_names:
        raise TargetError(f"{file.path}: tensor {source} is missing; a complete model file has it")
    return source


def _sizes(file: GgufFile) -> dict[str, int]:
    hidden, heads = file.setting("embedding_length", int), file.setting("attention.head_count", int)
    head_dim = file.setting("attention.key_length", int, hidden // max(heads, 1))
    value_dim = file.setting("attention.value_length", int, head_dim)
    rotated = file.setting("rope.dimension_count", int, head_dim)
    if not head_dim == value_dim == rotated:
        raise UnsupportedModelError(
            f"{file.path}: key length {head_dim}, value length {value_dim} and rotated dimensions {rotated} "
            "differ; only models in which they are equal are supported"
        )
    return {
        "hidden_size": hidden,
        "intermediate_size": file.setting("feed_forward_length", int),
        "num_hidden_layers": file.setting("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": file.setting("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.setting("context_length", int),
    }


def _family_fields(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of config.json that only some families have."""
    family = file.architecture
    attention_bias = "blk.0.attn_output.bias" in file.tensor_names
    mlp_bias = "blk.0.ffn_down.bias" in file.tensor_names
    if family == "qwen2":
        return {"use_sliding_window": False}
    if family == "qwen3":
        return {"use_sliding_window": False, "attention_bias": attention_bias}
    biases = {"attention_bias": attention_bias, "mlp_bias": mlp_bias}
    if family == "granite":
        return {**biases, **_granite_multipliers(file)}
    if family == "smollm3":
        # llama.cpp fixes the interval; the file does not carry it.
        layers = range(1, config["num_hidden_layers"] + 1)
        return {**biases, "no_rope_layers": [int(layer % 4 != 0) for layer in layers]}
    return biases


def _granite_multipliers(file: GgufFile) -> dict[str, float]:
    names = {
        "embedding_multiplier": "embedding_scale",
        "attention_multiplier": "attention.scale",
        "residual_multiplier": "residual_scale",
        "logits_scaling": "logit_scale",
    }
    return {name: shortest(file.setting(key, float)) for name, key in names.items()}


def _rope(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    theta = shortest(file.setting("rope.freq_base", float, 10_000.0))
    return {"rope_theta": theta, "rope_scaling": _rope_scaling(file, theta, config["head_dim"])}


def _rope_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any] | None:
    if _ROPE_FACTORS in file.tensor_names:
        return _llama3_scaling(file, theta, head_dim)
    kind = file.setting("rope.scaling.type", str, "none")
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"{file.path}: rope scaling {kind!r} is not supported; it must be none, linear, yarn or "
            "the rule of Llama 3.1"
        )
    scaling: dict[str, Any] = {
        "rope_type": kind,
        "factor": shortest(file.setting("rope.scaling.factor", float)),
    }
    return {**scaling, **_yarn_settings(file)} if kind == "yarn" else scaling


def _yarn_settings(file: GgufFile) -> dict[str, Any]:
    for key in _UNSUPPORTED_YARN:
        if file.has(f"{file.architecture}.rope.scaling.{key}"):
            raise UnsupportedModelError(
                f"{file.path}: YaRN setting rope.scaling.{key} is not supported; use the model's "
                "Hugging Face directory"
            )
    return {
        "original_max_position_embeddings": file.setting("rope.scaling.original_context_length", int),
        "beta_fast": shortest(file.setting("rope.scaling.yarn_beta_fast", float, 32.0)),
        "beta_slow": shortest(file.setting("rope.scaling.yarn_beta_slow", float, 1.0)),
    }


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recognise Llama 3.1's rule in the table of divisors that GGUF stores in its place: [head_dim / 2]."""
    divisors = file.tensor(_ROPE_FACTORS)
    factor = shortest(float(divisors.max()))
    rule = Llama3Scaling(factor, _LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT)
    plain = inverse_frequencies(theta, head_dim, None)
    if divisors.shape != plain.shape or not np.allclose(
        divisors, plain / rule.apply(plain, theta), rtol=1e-3
    ):
        raise UnsupportedModelError(
            f"{file.path}: tensor {_ROPE_FACTORS} is not the rope rule of Llama 3.1, the only one known "
            "to be stored so; use the model's Hugging Face directory"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": rule.low_freq_factor,
        "high_freq_factor": rule.high_freq_factor,
        "original_max_position_embeddings": rule.original_max_position_embeddings,
    }
