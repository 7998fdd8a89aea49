"""A GGUF file's hyper-parameters and tensors in Hugging Face terms.

Background. llama.cpp stores a model under its own names, and for the families that use its adjacent-pair rotary kernel
it also reorders the rows of the query and key projections, so that the pair (i, i + d/2) of Hugging Face lies at
(2i, 2i + 1). Where norms multiply by 1 + weight, it stores the sum. All this is undone here.

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

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.families import BY_GGUF_ARCHITECTURE, BY_MODEL_TYPE, refuse_family
from build.targets.families.record import Family, GgufFormat
from build.targets.gguf_file import GgufFile
from build.targets.gguf_rope import ROPE_FACTORS, rope_fields
from build.targets.storage import TensorPlan

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
_STORAGE = {"F32": "F32", "F16": "F16", "BF16": "BF16"}
_QUANTISED_STORAGE = "F16"
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# Keys that make another model of a family, and what they must say here.
_NEUTRAL: Mapping[str, Any] = {"attention.causal": True, "nextn_predict_layers": 0}


def huggingface_config(file: GgufFile) -> dict[str, Any]:
    """The `config.json` that describes the model, without token ids (the tokenizer has those).

    Raises:
        UnsupportedModelError: another architecture, experts, or a rope rule that is not supported.
        TargetError: hyper-parameters are missing or contradict each other.
    """
    if file.architecture not in BY_GGUF_ARCHITECTURE:
        raise refuse_family(file.architecture, str(file.path))
    if file.setting("expert_count", int, 0) > 0:
        raise refuse_family(f"{file.architecture} with experts (mixture of experts)", str(file.path))
    family = BY_GGUF_ARCHITECTURE[file.architecture]
    stored = _stored(family)
    _check_neutral(file, stored)
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family.model_type,
        "vocab_size": file.tensor_shape(_existing(file, "token_embd.weight"))[0],
        **_sizes(file),
        family.activation.key: family.activation.spellings[0],
        "rms_norm_eps": file.decimal("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in file.tensor_names,
        "torch_dtype": _TORCH_NAMES[_storage(file, "blk.0.ffn_down.weight")],
    }
    config.update(rope_fields(file, config["head_dim"], config["max_position_embeddings"]))
    config.update(stored.settings(file, config))
    return config


def tensor_plans(file: GgufFile, architecture: Architecture) -> list[TensorPlan]:
    """How each tensor of the checkpoint is produced from the file.

    Raises:
        TargetError: a tensor is missing, unexpected, or of another shape than the hyper-parameters say.
    """
    shapes = architecture.parameter_shapes()
    stored = _stored(BY_MODEL_TYPE[architecture.family])
    sources = {name: _gguf_name(name, stored) for name in shapes}
    missing = sorted(set(sources.values()) - file.tensor_names)
    derived = {ROPE_FACTORS} if stored.has_rope_factors else set()
    unexpected = sorted(file.tensor_names - set(sources.values()) - derived)
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
    if architecture.norm_offset and name.endswith("norm.weight"):
        # In float32 whatever the file has: 16 bits would round the difference.
        return TensorPlan(
            name, "F32", shape, partial(_without_offset, file, source, architecture.norm_offset)
        )
    produce: Callable[[], NDArray[Any]] = partial(file.tensor, source)
    heads = _reordered_heads(architecture, name)
    if heads:
        produce = partial(_restored, file, source, heads)
    return TensorPlan(name, _storage(file, source), shape, produce)


def _without_offset(file: GgufFile, source: str, offset: float) -> NDArray[np.float32]:
    return file.tensor(source) - np.float32(offset)


def _reordered_heads(architecture: Architecture, name: str) -> int:
    """Number of heads in a projection whose rows llama.cpp reorders; 0 where it does not."""
    if not _stored(BY_MODEL_TYPE[architecture.family]).reordered:
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


def _stored(family: Family) -> GgufFormat:
    assert family.gguf is not None  # the families that GGUF files name have it
    return family.gguf


def _gguf_name(name: str, stored: GgufFormat) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{({**_LAYER_NAMES, **stored.norm_names})[module]}.{kind}"


def _storage(file: GgufFile, source: str) -> str:
    return _STORAGE.get(file.tensor_type(_existing(file, source)), _QUANTISED_STORAGE)


def _existing(file: GgufFile, source: str) -> str:
    if source not in file.tensor_names:
        raise TargetError(f"{file.path}: tensor {source} is missing; a complete model file has it")
    return source


def _check_neutral(file: GgufFile, stored: GgufFormat) -> None:
    neutral = {
        **_NEUTRAL,
        "embedding_length_out": file.setting("embedding_length", int),
        **stored.neutral,
    }
    for key, value in neutral.items():
        found = file.setting(key, type(value), value)
        if found != value:
            raise UnsupportedModelError(
                f"{file.path}: {file.architecture}.{key} is {found}; only models in which it is {value} are supported"
            )
    if file.has(f"{file.architecture}.deepstack_mapping"):
        raise UnsupportedModelError(
            f"{file.path}: deepstack_mapping is not supported; it is of a vision model"
        )


def _alike(file: GgufFile, key: str, default: int | None = None) -> int:
    """A size that may be given once or for every layer.

    Raises:
        UnsupportedModelError: layers differ in it.
    """
    full = f"{file.architecture}.{key}"
    if not file.has(full) or not isinstance(file.content(full), list):
        return file.setting(key, int, default)
    values = set(file.value(full, list, []))
    if len(values) != 1:
        raise UnsupportedModelError(
            f"{file.path}: {full} differs from layer to layer, which is not supported"
        )
    return int(values.pop())


def _sizes(file: GgufFile) -> dict[str, int]:
    hidden, heads = file.setting("embedding_length", int), _alike(file, "attention.head_count")
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
        "intermediate_size": _alike(file, "feed_forward_length"),
        "num_hidden_layers": file.setting("block_count", int),
        "num_attention_heads": heads,
        "num_key_value_heads": _alike(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": file.setting("context_length", int),
    }
