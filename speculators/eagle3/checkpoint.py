"""EAGLE-3 weights: layouts of the EAGLE repository, SpecForge, ModelOpt and the speculators library in, the first out.

Tensors of `pytorch_model.bin` or `model.safetensors` (yuhuili/EAGLE3-LLaMA3.1-Instruct-8B and its siblings;
TensorRT-LLM 1.2.1 `_torch/models/modeling_speculative.py`), for width H, width T of the target, F features (3),
MLP width M, query width Q and key width K in heads of D, V tokens of which W can be drafted:

    fc.weight                                   [H, F T]    features from the target's low layer to its high one
    fc.bias                                     [H]         where config.bias
    input_norm.weight                           [F T]       where config.norm_before_fc
    fc_norm.{0..F-1}.weight                     [T]         where config.fc_norm
    midlayer.self_attn.{q,k,v}_proj.weight      [Q or K, 2H]  columns: token embedding, then hidden state
    midlayer.self_attn.{q,k}_norm.weight        [D]         drafters with Qwen3's layer
    midlayer.self_attn.o_proj.weight            [H, Q]
    midlayer.mlp.{gate,up}_proj.weight          [M, H]
    midlayer.mlp.down_proj.weight               [H, M]
    midlayer.input_layernorm.weight             [H]         on the token embedding
    midlayer.hidden_norm.weight                 [H]         on the hidden state
    midlayer.post_attention_layernorm.weight    [H]
    norm.weight                                 [H]
    lm_head.weight                              [W, H]      optional where W is V: the target's own
    d2t                                         int64 [W]   *offset*: target id = draft id + d2t[draft id]
    t2d                                         bool [V]    optional: whether a target id can be drafted
    embed_tokens.weight                         [V, H]      optional: the target's own

`d2t` and `t2d` are there only where W differs from V; ModelOpt writes no `t2d`, which follows from `d2t`. SpecForge,
ModelOpt and the speculators library say `layers.0` instead of `midlayer`; TensorRT-LLM 1.2.1 knows only `midlayer` (its
pull request 11010 of January 2026 added the other), so that is what is written. The speculators library once stored the
target's `verifier_norm` and `verifier_lm_head`, which only training needs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from speculators.eagle.checkpoint import DERIVED_SUFFIX, EMBEDDING, attention_and_mlp_shapes
from speculators.eagle3.config import AnyEagle3, Eagle3Config
from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array, Tensors, dtype_of, find_file, read_tensors, write_safetensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DRAFT_TO_TARGET, TARGET_TO_DRAFT = "d2t", "t2d"

OUTPUT = "lm_head.weight"

_LAYER = "midlayer"
_OTHER_NAMES = (
    (re.compile(r"^model\."), ""),
    (re.compile(r"^aux_norm_low\."), "fc_norm.0."),  # SGLang's older names
    (re.compile(r"^aux_norm_mid\."), "fc_norm.1."),
    (re.compile(r"^aux_norm_high\."), "fc_norm.2."),
)
_FURTHER_LAYER = re.compile(r"^(?:layers|midlayer)\.(\d+)\.")
_TRAINING_ONLY = ("verifier_norm.", "verifier_lm_head.")

Eagle3Checkpoint = Checkpoint[Eagle3Config]


def tensor_shapes(config: Eagle3Config, optional: Collection[str] = (OUTPUT,)) -> Shapes:
    """Names and shapes; of the tensors that are the target's own where they are absent, the `optional` ones."""
    return fusion_shapes(config) | first_layer_shapes(config, _LAYER) | output_shapes(config, optional)


def fusion_shapes(config: Eagle3Config) -> Shapes:
    """Of what makes one hidden state of the target's features."""
    width, features = config.hidden_size, config.num_features
    shapes: Shapes = {"fc.weight": (width, features * config.feature_width)}
    if config.bias:
        shapes["fc.bias"] = (width,)
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (features * config.feature_width,)
    if config.fc_norm:
        shapes |= {f"fc_norm.{feature}.weight": (config.feature_width,) for feature in range(features)}
    return shapes


def first_layer_shapes(config: Eagle3Config, layer: str) -> Shapes:
    """Of the layer that reads token embedding and hidden state side by side."""
    shapes = layer_shapes(config, layer, 2 * config.hidden_size)
    return shapes | {f"{layer}.hidden_norm.weight": (config.hidden_size,)}


def layer_shapes(config: Eagle3Config, layer: str, input_width: int) -> Shapes:
    """Of a Llama layer, or one of Qwen3, whose attention reads so many columns."""
    shapes = attention_and_mlp_shapes(config, layer, input_width, config.attention_bias)
    if config.attention_bias:
        shapes[f"{layer}.self_attn.o_proj.bias"] = (config.hidden_size,)
    if config.qk_norm:
        shapes |= {f"{layer}.self_attn.{kind}_norm.weight": (config.head_width,) for kind in "qk"}
    for norm in ("input_layernorm", "post_attention_layernorm"):
        shapes[f"{layer}.{norm}.weight"] = (config.hidden_size,)
    return shapes


def output_shapes(config: Eagle3Config, optional: Collection[str]) -> Shapes:
    """Of what follows the last layer, and of the `optional` tensors that may be the target's own."""
    width = config.hidden_size
    shapes: Shapes = {"norm.weight": (width,)}
    if OUTPUT in optional or config.has_vocabulary_map:
        shapes[OUTPUT] = (config.output_size, width)
    if config.has_vocabulary_map:
        shapes[DRAFT_TO_TARGET], shapes[TARGET_TO_DRAFT] = (config.output_size,), (config.vocab_size,)
    if EMBEDDING in optional:
        shapes[EMBEDDING] = (config.vocab_size, width)
    return shapes


def load_checkpoint(directory: Path) -> Eagle3Checkpoint:
    """Read a checkpoint directory.

    Raises:
        CheckpointError: a file is missing or damaged, the tensors do not fit the config, or the vocabulary maps
            contradict each other.
    """
    config = Eagle3Config.read(directory)
    path = find_file(directory, WEIGHT_FILES)
    found = read_tensors(path, is_drafters)
    tensors = {_current_name(name): values for name, values in found.items()}
    config = _as_stored(str(path), config, tensors)
    settle_map(str(path), config, tensors)
    _check(str(path), config, tensors)
    type_map(config, tensors)
    return Checkpoint(config, tensors)


def save_checkpoint(checkpoint: Eagle3Checkpoint, directory: Path) -> None:
    """Write a checkpoint in the layout of the EAGLE repository into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    _check(str(directory), checkpoint.config, checkpoint.tensors)
    write(checkpoint, directory)


def write(checkpoint: Checkpoint[AnyEagle3], directory: Path) -> None:
    """Write what has been checked."""
    config = checkpoint.config
    write_safetensors(directory / WEIGHT_FILES[0], checkpoint.tensors)
    config = config.changed(draft_vocab_size=config.output_size)
    config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def target_ids(checkpoint: Checkpoint[AnyEagle3]) -> Array:
    """The target's id of each draft token, int64 ``[W]``."""
    drafted = np.arange(checkpoint.config.output_size, dtype=np.int64)
    if not checkpoint.config.has_vocabulary_map:
        return drafted
    return drafted + checkpoint.tensors[DRAFT_TO_TARGET]


def vocabulary_maps(kept: Array, vocab_size: int) -> Tensors:
    """`d2t` and `t2d` of a draft vocabulary.

    Args:
        kept: int64 ``[W]``, the target's ids that can be drafted, each once.
        vocab_size: V.

    Raises:
        CheckpointError: an id is there twice or is none of the target's.
    """
    chosen = np.sort(np.asarray(kept, dtype=np.int64))
    if len(np.unique(chosen)) != len(chosen) or chosen.size == 0 or chosen[0] < 0 or chosen[-1] >= vocab_size:
        raise CheckpointError(f"a draft vocabulary needs distinct ids from 0 to {vocab_size - 1}")
    draftable = np.zeros(vocab_size, dtype=np.bool_)
    draftable[chosen] = True
    return {DRAFT_TO_TARGET: chosen - np.arange(len(chosen), dtype=np.int64), TARGET_TO_DRAFT: draftable}


def is_drafters(name: str) -> bool:
    """Whether a stored tensor is read: neither made from the config nor needed for training alone."""
    return not name.endswith(DERIVED_SUFFIX) and not name.startswith(_TRAINING_ONLY)


def common_name(name: str) -> str:
    """The name of a tensor outside of the layers, as it is written."""
    for other, current in _OTHER_NAMES:
        name = other.sub(current, name)
    return name


def _current_name(name: str) -> str:
    return re.sub(r"^layers\.0\.", f"{_LAYER}.", common_name(name))


def _as_stored(where: str, config: Eagle3Config, tensors: Mapping[str, Array]) -> Eagle3Config:
    """The config of what is stored: published ones may count the target's layers, or name its class."""
    further = {int(found[1]) for name in tensors if (found := _FURTHER_LAYER.match(name))}
    if further:
        raise CheckpointError(
            f"{where} has {max(further) + 1} decoder layers; EAGLE-3 drafters of one layer are supported"
        )
    normed = any(name.startswith(f"{_LAYER}.self_attn.q_norm.") for name in tensors)
    return config.changed(num_hidden_layers=1, model_type="qwen3" if normed else "llama")


def settle_map(where: str, config: Eagle3Config, tensors: Tensors) -> None:
    """Complete the vocabulary maps, or drop them where they say nothing.

    Raises:
        CheckpointError: they reduce a vocabulary that the config says is whole.
    """
    if config.has_vocabulary_map:
        _complete_map(config, tensors)
    else:
        _drop_identity_map(where, config, tensors)


def type_map(config: Eagle3Config, tensors: Tensors) -> None:
    """Give the vocabulary maps their types."""
    if config.has_vocabulary_map:
        tensors[DRAFT_TO_TARGET] = tensors[DRAFT_TO_TARGET].astype(np.int64)
        tensors[TARGET_TO_DRAFT] = tensors[TARGET_TO_DRAFT].astype(np.bool_)


def _complete_map(config: Eagle3Config, tensors: Tensors) -> None:
    """Add `t2d`, where it is not stored and `d2t` names tokens of the target."""
    offsets = tensors.get(DRAFT_TO_TARGET)
    if TARGET_TO_DRAFT in tensors or offsets is None or offsets.dtype.kind not in "iu":
        return
    ids = np.arange(len(offsets), dtype=np.int64) + offsets.astype(np.int64)
    draftable = np.zeros(config.vocab_size, dtype=np.bool_)
    draftable[ids[(ids >= 0) & (ids < config.vocab_size)]] = True
    tensors[TARGET_TO_DRAFT] = draftable


def _drop_identity_map(where: str, config: Eagle3Config, tensors: Tensors) -> None:
    """Some trainers store the maps also where both vocabularies are the same; then they must say nothing."""
    offsets, draftable = tensors.pop(DRAFT_TO_TARGET, None), tensors.pop(TARGET_TO_DRAFT, None)
    if (offsets is not None and offsets.any()) or (draftable is not None and not draftable.all()):
        raise CheckpointError(
            f"{where}: d2t or t2d reduces the vocabulary, but config.json has draft_vocab_size = "
            f"{config.output_size} = vocab_size"
        )


def _check(where: str, config: Eagle3Config, tensors: Mapping[str, Array]) -> None:
    check(where, config, tensors, tensor_shapes(config, tensors.keys() & {EMBEDDING, OUTPUT}))


def check(where: str, config: Eagle3Config, tensors: Mapping[str, Array], shapes: Shapes) -> None:
    """Exactly these tensors, and maps that do not contradict each other.

    Raises:
        CheckpointError: it is not so.
    """
    check_tensors(where, tensors, shapes, integers=frozenset({DRAFT_TO_TARGET, TARGET_TO_DRAFT}))
    if config.has_vocabulary_map:
        _check_maps(where, config, tensors)


def _check_maps(where: str, config: Eagle3Config, tensors: Mapping[str, Array]) -> None:
    offsets = tensors[DRAFT_TO_TARGET].astype(np.int64)
    ids = np.arange(config.output_size, dtype=np.int64) + offsets
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        worst = int(np.argmax(np.where(ids < 0, config.vocab_size - ids, ids)))
        hint = (
            " (d2t holds offsets, not ids: target id = draft id + d2t)" if _are_ids(offsets, tensors) else ""
        )
        raise CheckpointError(
            f"{where}: d2t maps draft token {worst} to {int(ids[worst])}; the target has ids 0 to "
            f"{config.vocab_size - 1}{hint}"
        )
    draftable = tensors[TARGET_TO_DRAFT].astype(np.bool_)
    expected = np.zeros(config.vocab_size, dtype=np.bool_)
    expected[ids] = True
    if len(np.unique(ids)) != len(ids) or not np.array_equal(draftable, expected):
        hint = "; d2t holds ids where offsets are expected" if _are_ids(offsets, tensors) else ""
        raise CheckpointError(f"{where}: d2t and t2d name different tokens{hint}")


def _are_ids(offsets: Array, tensors: Mapping[str, Array]) -> bool:
    """Whether `d2t` was written as target ids, the usual mistake."""
    return np.array_equal(offsets, np.flatnonzero(tensors[TARGET_TO_DRAFT]))
