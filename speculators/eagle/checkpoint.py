"""EAGLE-1 and EAGLE-2 weights: the layout of the EAGLE repository, in and out.

Tensors of `pytorch_model.bin` or `model.safetensors` (yuhuili/EAGLE-Vicuna-7B-v1.3 and its siblings; SafeAILab/EAGLE
`eagle/model/cnets1.py`), for width H, MLP width M, query width Q and key width K (heads times head width), V tokens:

    fc.weight                                    [H, 2H]   columns: token embedding, then hidden state
    fc.bias                                      [H]       where config.bias
    embed_tokens.weight                          [V, H]    often left out: it is the target's
    layers.{i}.self_attn.{q,k,v}_proj.weight     [Q or K, H]
    layers.{i}.self_attn.{q,k,v}_proj.bias       [Q or K]  where config.qkv_bias
    layers.{i}.self_attn.o_proj.weight           [H, Q]
    layers.{i}.mlp.{gate,up}_proj.weight         [M, H]
    layers.{i}.mlp.down_proj.weight              [H, M]
    layers.{i}.input_layernorm.weight            [H]       not in layer 0
    layers.{i}.post_attention_layernorm.weight   [H]

There is no output matrix: the target's serves.
"""

from __future__ import annotations

from pathlib import Path

from speculators.eagle.config import EagleConfig, LlamaDrafterConfig
from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors
from speculators.formats.tensors import Tensors, dtype_of, find_file, read_tensors, write_safetensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
EMBEDDING = "embed_tokens.weight"

# Old Llama checkpoints store the rotary table, which follows from the config.
DERIVED_SUFFIX = ".rotary_emb.inv_freq"

EagleCheckpoint = Checkpoint[EagleConfig]


def tensor_shapes(config: EagleConfig, with_embedding: bool) -> Shapes:
    """Names and shapes of the tensors; `with_embedding` adds the target's token embedding."""
    width = config.hidden_size
    shapes: Shapes = {"fc.weight": (width, 2 * width)}
    if config.bias:
        shapes["fc.bias"] = (width,)
    if with_embedding:
        shapes[EMBEDDING] = (config.vocab_size, width)
    for layer in range(config.num_hidden_layers):
        shapes |= _layer_shapes(config, f"layers.{layer}", with_input_norm=layer > 0)
    return shapes


def load_checkpoint(directory: Path) -> EagleCheckpoint:
    """Read a checkpoint directory.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors do not fit the config.
    """
    config = EagleConfig.read(directory)
    path = find_file(directory, WEIGHT_FILES)
    tensors = read_tensors(path, lambda name: not name.endswith(DERIVED_SUFFIX))
    _check(str(path), config, tensors)
    return Checkpoint(config, tensors)


def save_checkpoint(checkpoint: EagleCheckpoint, directory: Path) -> None:
    """Write a checkpoint into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    _check(str(directory), checkpoint.config, checkpoint.tensors)
    write_safetensors(directory / WEIGHT_FILES[0], checkpoint.tensors)
    checkpoint.config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def attention_and_mlp_shapes(
    config: LlamaDrafterConfig, prefix: str, input_width: int, qkv_bias: bool = False
) -> Shapes:
    """Shapes of the linear layers of a Llama layer whose attention reads `input_width` columns."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_width, config.key_value_heads * config.head_width
    shapes: Shapes = {}
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        shapes[f"{prefix}.self_attn.{name}.weight"] = (rows, input_width)
        if qkv_bias:
            shapes[f"{prefix}.self_attn.{name}.bias"] = (rows,)
    shapes[f"{prefix}.self_attn.o_proj.weight"] = (width, queries)
    shapes[f"{prefix}.mlp.gate_proj.weight"] = (inner, width)
    shapes[f"{prefix}.mlp.up_proj.weight"] = (inner, width)
    shapes[f"{prefix}.mlp.down_proj.weight"] = (width, inner)
    return shapes


def _layer_shapes(config: EagleConfig, prefix: str, with_input_norm: bool) -> Shapes:
    shapes = attention_and_mlp_shapes(config, prefix, config.hidden_size, config.qkv_bias)
    if with_input_norm:
        shapes[f"{prefix}.input_layernorm.weight"] = (config.hidden_size,)
    shapes[f"{prefix}.post_attention_layernorm.weight"] = (config.hidden_size,)
    return shapes


def _check(where: str, config: EagleConfig, tensors: Tensors) -> None:
    check_tensors(where, tensors, tensor_shapes(config, with_embedding=EMBEDDING in tensors))
