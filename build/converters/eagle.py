"""EAGLE-1 and EAGLE-2 drafters for TensorRT-LLM 1.2.1 (`models/eagle/{model,config}.py`, `examples/eagle`), and back.

Tensors that are added to every rank of a target's checkpoint, for nets n = 0 .. depth-1 (all hold the same weights),
layers i, width H, MLP width M, query width Q, key width K, tp ranks:

    eagle_nets.{n}.drafter.vocab_embedding.weight            [V, H]
    eagle_nets.{n}.drafter.fc.{weight,bias}                  [H / tp, 2H], [H / tp]     zero bias where there is none
    eagle_nets.{n}.drafter.layers.{i}.attention.qkv.weight   [(Q + 2K) / tp, H]
    eagle_nets.{n}.drafter.layers.{i}.attention.dense.weight [H, Q / tp]
    eagle_nets.{n}.drafter.layers.{i}.mlp.fc.weight          [M / tp, H]     gate_proj, the activated one
    eagle_nets.{n}.drafter.layers.{i}.mlp.gate.weight        [M / tp, H]     up_proj
    eagle_nets.{n}.drafter.layers.{i}.mlp.proj.weight        [H, M / tp]
    eagle_nets.{n}.drafter.layers.{i}.input_layernorm.weight [H]             not in layer 0
    eagle_nets.{n}.drafter.layers.{i}.post_layernorm.weight  [H]
    eagle_nets.{n}.lm_head.weight                            [padded V / tp, H]     the target's

Keys of its config: `architecture` EagleForCausalLM, `num_eagle_layers` (depth of the token tree), `max_draft_len`,
`max_non_leaves_per_layer`, and `eagle_net_config` with the drafter's own sizes. An engine has one rotary table, made
from the target's config, so drafter and target must agree on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from build.converters.choices import Layout, engine_target, weight_dtype
from build.converters.eagle_layers import EAGLE_NET, engine_layers, source_layers
from build.converters.engine_checkpoint import EngineCheckpoint
from build.converters.errors import ConversionError
from build.converters.output import Conversion, new_directory
from build.converters.sharding import join, split
from build.converters.target import Target, check_fit, read_target
from speculators.eagle.checkpoint import EMBEDDING, EagleCheckpoint, load_checkpoint, save_checkpoint
from speculators.eagle.config import ROPE_SETTINGS, EagleConfig
from speculators.formats.tensors import Array, Tensors, as_dtype, dtype_of

ARCHITECTURE = "EagleForCausalLM"
TARGETS = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
PREFIX = "eagle_nets."

_LARGEST_DRAFT = 256


@dataclass(frozen=True)
class TreeLimits:
    """What the engine is built for.

    Attributes:
        max_draft_length: nodes of a token tree without its root, at most 256.
        depth: layers of the token tree; every path of the choices must be this long.
        max_non_leaves: nodes with children in a layer of the tree.
    """

    max_draft_length: int = 63
    depth: int = 4
    max_non_leaves: int = 10

    def check(self) -> None:
        """Refuse limits that no engine can be built for.

        Raises:
            ConversionError: one is out of range.
        """
        if not 1 <= self.max_draft_length <= _LARGEST_DRAFT:
            raise ConversionError(
                f"max_draft_length = {self.max_draft_length} must be from 1 to {_LARGEST_DRAFT}"
            )
        if not 1 <= self.depth <= self.max_draft_length:
            raise ConversionError(
                f"num_eagle_layers = {self.depth} must be from 1 to max_draft_length = {self.max_draft_length}"
            )
        if self.max_non_leaves < 1:
            raise ConversionError(f"max_non_leaves_per_layer = {self.max_non_leaves} must be at least 1")


def convert_eagle(
    drafter: Path,
    target: Path,
    output: Path,
    *,
    layout: Layout = "checkpoint",
    dtype: str | None = None,
    tp_size: int | None = None,
    limits: TreeLimits | None = None,
) -> Conversion:
    """Add a drafter to a target's checkpoint, or write it as NVIDIA's script reads it.

    Args:
        drafter: a drafter in the layout of the EAGLE repository.
        target: a TensorRT-LLM checkpoint for the layout `checkpoint`; this or a Hugging Face model for `source`.
        output: directory to write.
        layout: `checkpoint` or `source`.
        dtype: of the drafter; unset means that of the checkpoint, or that in which it is stored.
        tp_size: must be that of the checkpoint; unset means whatever it is.
        limits: of the token tree.

    Raises:
        ConversionError: the drafter does not fit the target, or the output cannot be written.
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = load_checkpoint(drafter)
    about = read_target(target)
    check_fit(drafter, found.config.hidden_size, found.config.vocab_size, about)
    whole = _completed(found, about)
    if layout == "source":
        tensors = as_dtype(whole.tensors, weight_dtype(dtype) or dtype_of(found.tensors))
        return _write_source(EagleCheckpoint(whole.config, tensors), [drafter, target], output)
    engine = engine_target(about, dtype, tp_size)
    limits = limits or TreeLimits()
    limits.check()
    _check_engine(found.config, drafter, engine)
    parts = _sharded(
        EagleCheckpoint(whole.config, as_dtype(whole.tensors, engine.dtype)), engine, limits.depth
    )
    settings = _settings(found.config, engine, limits)
    made = {"family": "eagle", "layout": layout}
    engine.add_drafter(drafter, output, settings, parts, prefix=PREFIX, provenance=made)
    notes = (
        "trtllm-build needs --speculative_decoding_mode eagle",
        f"every path of eagle_choices must have {limits.depth} entries or lead to one that has",
    )
    return Conversion(output, layout, notes)


def restore_eagle(checkpoint: Path, output: Path) -> Conversion:
    """Write the drafter of an EagleForCausalLM checkpoint in the layout of the EAGLE repository.

    Raises:
        ConversionError: the checkpoint has no EAGLE drafter, or the output cannot be written.
        CheckpointError: a file is missing or damaged.
    """
    engine = EngineCheckpoint.read(checkpoint)
    net = engine.config.get(EAGLE_NET)
    if engine.architecture != ARCHITECTURE or not isinstance(net, dict):
        raise ConversionError(f"{checkpoint} is a {engine.architecture} checkpoint, not {ARCHITECTURE}")
    config = EagleConfig.parse(
        {
            "vocab_size": engine.vocab_size,
            "hidden_size": net.get("hidden_size"),
            "intermediate_size": net.get("intermediate_size"),
            "num_hidden_layers": net.get("num_hidden_layers"),
            "num_attention_heads": net.get("num_attention_heads"),
            "num_key_value_heads": net.get("num_key_value_heads"),
            "head_dim": net.get("head_size"),
            "rms_norm_eps": net.get("norm_epsilon"),
            "rope_theta": net.get("rotary_base"),
            "rope_scaling": net.get("rotary_scaling"),
            "max_position_embeddings": net.get("max_position_embeddings"),
        },
        f"{checkpoint}: {EAGLE_NET}",
    )
    parts = engine.tensors(f"{PREFIX}0.drafter.")
    tensors: Tensors = {EMBEDDING: _required(parts[0], "vocab_embedding.weight", engine)}
    for name in ("fc.weight", "fc.bias"):
        tensors[name] = join([_required(part, name, engine) for part in parts])
    tensors |= source_layers(config, parts, engine)
    if not tensors["fc.bias"].any():  # TensorRT-LLM's fc always has one
        del tensors["fc.bias"]
        config = config.changed(bias=False)
    return _write_source(EagleCheckpoint(config, tensors), [checkpoint], output)


def _required(part: Tensors, name: str, engine: EngineCheckpoint) -> Array:
    if name not in part:
        raise ConversionError(f"{engine.directory}: {PREFIX}0.drafter.{name} is missing")
    return part[name]


def _completed(found: EagleCheckpoint, target: Target) -> EagleCheckpoint:
    """With what TensorRT-LLM's loader demands: a token embedding and a bias of `fc`."""
    tensors = dict(found.tensors)
    if EMBEDDING not in tensors:
        tensors[EMBEDDING] = target.embedding()
    if not found.config.bias:
        tensors["fc.bias"] = np.zeros(found.config.hidden_size, tensors["fc.weight"].dtype)
    return EagleCheckpoint(found.config.changed(bias=True), tensors)


def _write_source(drafter: EagleCheckpoint, sources: list[Path], output: Path) -> Conversion:
    size = sum(values.nbytes for values in drafter.tensors.values())
    with new_directory(output, sources, size, {"family": "eagle", "layout": "source"}) as partial:
        save_checkpoint(drafter, partial)
    return Conversion(output, "source")


def _check_engine(config: EagleConfig, drafter: Path, engine: EngineCheckpoint) -> None:
    where = engine.directory
    if engine.architecture not in TARGETS:
        raise ConversionError(
            f"{where} is a {engine.architecture} checkpoint; TensorRT-LLM 1.2.1 puts EAGLE on {', '.join(TARGETS)}"
        )
    if engine.pp_size > 1:
        raise ConversionError(f"{where} has {engine.pp_size} pipeline stages; EAGLE runs on one")
    if engine.config.get("use_parallel_embedding"):
        raise ConversionError(
            f"{where} splits its embedding; convert the target without --use_parallel_embedding"
        )
    if (engine.config.get("quantization") or {}).get("kv_cache_quant_algo"):
        raise ConversionError(
            f"{where} quantises the KV cache, for which the drafter's layer has no scales; convert the target "
            "without KV-cache quantisation"
        )
    if config.qkv_bias:
        raise ConversionError(
            f"{drafter} has query, key and value biases; TensorRT-LLM's EAGLE layer has none"
        )
    _check_rope(config, drafter, engine)


def _check_rope(config: EagleConfig, drafter: Path, engine: EngineCheckpoint) -> None:
    theirs = float(engine.config.get("rotary_base", 10000.0))
    if config.rope_theta != theirs:
        raise ConversionError(
            f"{drafter} has rope_theta {config.rope_theta:g}, {engine.directory} has rotary_base {theirs:g}; an "
            "engine has one rotary table"
        )
    scaling = engine.config.get("rotary_scaling") or {}
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    if config.rope_type != kind:
        raise ConversionError(
            f"{drafter} has rope scaling {config.rope_type!r}, {engine.directory} has {kind!r}; an engine has one "
            "rotary table"
        )
    own = config.rope_scaling or {}
    for key in ROPE_SETTINGS[kind]:
        if key in scaling and scaling[key] != own[key]:
            raise ConversionError(
                f"{drafter} has rope scaling with {key} {own[key]}, {engine.directory} with {scaling[key]}; an engine "
                "has one rotary table"
            )


def _sharded(drafter: EagleCheckpoint, engine: EngineCheckpoint, depth: int) -> list[Tensors]:
    """Tensors of each rank; the nets of all depths refer to the same arrays."""
    tensors, size = drafter.tensors, engine.tp_size
    own: list[Tensors] = [{"vocab_embedding.weight": tensors[EMBEDDING]} for _ in range(size)]
    for name in ("fc.weight", "fc.bias"):
        for part, shard in zip(own, split(name, tensors[name], size), strict=True):
            part[name] = shard
    for part, layers in zip(own, engine_layers(drafter.config, tensors, size), strict=True):
        part |= layers
    outputs = [as_dtype({"lm_head.weight": shard}, engine.dtype) for shard in engine.output_shards()]
    parts: list[Tensors] = []
    for part, output in zip(own, outputs, strict=True):
        net = {f"drafter.{name}": values for name, values in part.items()} | output
        parts.append({f"{PREFIX}{n}.{name}": values for n in range(depth) for name, values in net.items()})
    return parts


def _settings(config: EagleConfig, engine: EngineCheckpoint, limits: TreeLimits) -> dict[str, object]:
    net = {
        "architecture": "LlamaForCausalLM",
        "dtype": engine.dtype,
        "logits_dtype": str(engine.config.get("logits_dtype", "float32")),
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_key_value_heads": config.key_value_heads,
        "vocab_size": engine.vocab_size,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "rotary_base": config.rope_theta,
        "rotary_scaling": engine.config.get("rotary_scaling"),
        "norm_epsilon": config.rms_norm_eps,
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "mapping": {"world_size": engine.world_size, "tp_size": engine.tp_size, "pp_size": 1},
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "head_dim": config.head_width,
        "head_size": config.head_width,
    }
    return {
        "architecture": ARCHITECTURE,
        "max_draft_len": limits.max_draft_length,
        "num_eagle_layers": limits.depth,
        "max_non_leaves_per_layer": limits.max_non_leaves,
        EAGLE_NET: net,
    }
