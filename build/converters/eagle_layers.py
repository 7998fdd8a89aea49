"""Decoder layers between Hugging Face's Llama names and TensorRT-LLM's, split over tensor-parallel ranks.

TensorRT-LLM fuses the rows of query, key and value into `attention.qkv`, rank by rank, and calls the activated half of
the gated MLP `fc`: gate_proj -> mlp.fc, up_proj -> mlp.gate, down_proj -> mlp.proj (1.2.1 `models/llama/convert.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from build.converters.engine_checkpoint import EngineCheckpoint
from build.converters.errors import ConversionError
from build.converters.sharding import join, join_key_values, split, split_key_values
from speculators.eagle.config import EagleConfig
from speculators.formats.tensors import Array, Tensors

EAGLE_NET = "eagle_net_config"

# Hugging Face name -> TensorRT-LLM name, axis of the split (None: every rank has all of it).
_PLAIN: dict[str, tuple[str, int | None]] = {
    "self_attn.o_proj.weight": ("attention.dense.weight", 1),
    "mlp.gate_proj.weight": ("mlp.fc.weight", 0),
    "mlp.up_proj.weight": ("mlp.gate.weight", 0),
    "mlp.down_proj.weight": ("mlp.proj.weight", 1),
    "input_layernorm.weight": ("input_layernorm.weight", None),
    "post_attention_layernorm.weight": ("post_layernorm.weight", None),
}


def engine_layers(config: EagleConfig, tensors: Tensors, tp_size: int) -> list[Tensors]:
    """TensorRT-LLM's tensors `layers.{i}.*` of each rank.

    Raises:
        ConversionError: heads or widths cannot be shared out over the ranks.
    """
    parts: list[Tensors] = [{} for _ in range(tp_size)]
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        for part, fused in zip(parts, _fused_shards(config, tensors, prefix, tp_size), strict=True):
            part[f"{prefix}attention.qkv.weight"] = fused
        for name, (renamed, axis) in _PLAIN.items():
            if prefix + name not in tensors:
                continue  # the first layer has no input norm
            values = tensors[prefix + name]
            shards = [values] * tp_size if axis is None else split(prefix + name, values, tp_size, axis)
            for part, shard in zip(parts, shards, strict=True):
                part[prefix + renamed] = shard
    return parts


def source_layers(config: EagleConfig, parts: Sequence[Tensors], engine: EngineCheckpoint) -> Tensors:
    """Hugging Face's tensors `layers.{i}.*` from those of the ranks.

    Raises:
        ConversionError: a tensor is missing.
    """
    tensors: Tensors = {}
    for layer in range(config.num_hidden_layers):
        prefix = f"layers.{layer}."
        tensors |= _unfused(config, prefix, _shards(parts, f"{prefix}attention.qkv.weight", engine))
        for name, (renamed, axis) in _PLAIN.items():
            if name == "input_layernorm.weight" and layer == 0:
                continue
            shards = _shards(parts, prefix + renamed, engine)
            tensors[prefix + name] = shards[0] if axis is None else join(shards, axis)
    return tensors


def _fused_shards(config: EagleConfig, tensors: Tensors, prefix: str, tp_size: int) -> list[Array]:
    name = f"{prefix}self_attn."
    heads = config.num_attention_heads
    if heads % tp_size:
        raise ConversionError(f"{name}q_proj: {heads} heads cannot be shared out over {tp_size} ranks")
    queries = split(f"{name}q_proj", tensors[f"{name}q_proj.weight"], tp_size)
    keys, values = (
        split_key_values(name + part, tensors[f"{name}{part}.weight"], config.key_value_heads, tp_size)
        for part in ("k_proj", "v_proj")
    )
    return [join(rows) for rows in zip(queries, keys, values, strict=True)]


def _unfused(config: EagleConfig, prefix: str, shards: Sequence[Array]) -> Tensors:
    width, size = config.head_width, len(shards)
    queries = config.num_attention_heads * width // size
    keys = max(config.key_value_heads // size, 1) * width
    bounds = {"q_proj": (0, queries), "k_proj": (queries, queries + keys), "v_proj": (queries + keys, None)}
    tensors: Tensors = {}
    for name, (start, end) in bounds.items():
        rows = [shard[start:end] for shard in shards]
        whole = join(rows) if name == "q_proj" else join_key_values(rows, config.key_value_heads)
        tensors[f"{prefix}self_attn.{name}.weight"] = whole
    return tensors


def _shards(parts: Sequence[Tensors], name: str, engine: EngineCheckpoint) -> list[Array]:
    if any(name not in part for part in parts):
        raise ConversionError(f"{engine.directory}: eagle_nets.0.drafter.{name} is missing")
    return [part[name] for part in parts]
