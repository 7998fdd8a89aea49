"""EAGLE-3 weights: the layouts of the EAGLE repository, SpecForge and the speculators library in, the first out.

Tensors of `pytorch_model.bin` or `model.safetensors` (yuhuili/EAGLE3-LLaMA3.1-Instruct-8B and its siblings;
TensorRT-LLM 1.2.1 `_torch/models/modeling_speculative.py`), for width H, width T of the target, F features (3),
MLP width M, query width Q and key width K, V tokens of which W can be drafted:

    fc.weight                                   [H, F T]    features from the target's low layer to its high one
    fc.bias                                     [H]         where config.bias
    midlayer.self_attn.{q,k,v}_proj.weight      [Q or K, 2H]  columns: token embedding, then hidden state
    midlayer.self_attn.o_proj.weight            [H, Q]
    midlayer.mlp.{gate,up}_proj.weight          [M, H]
    midlayer.mlp.down_proj.weight               [H, M]
    midlayer.input_layernorm.weight             [H]         on the token embedding
    midlayer.hidden_norm.weight                 [H]         on the hidden state
    midlayer.post_attention_layernorm.weight    [H]
    norm.weight                                 [H]
    lm_head.weight                              [W, H]
    d2t                                         int64 [W]   *offset*: target id = draft id + d2t[draft id]
    t2d                                         bool [V]    whether a target id can be drafted
    embed_tokens.weight                         [V, H]      optional: the target's own

`d2t` and `t2d` are there only where W differs from V. SpecForge and the speculators library say `layers.0` instead of
`midlayer`; TensorRT-LLM 1.2.1 knows only `midlayer` (its pull request 11010 of January 2026 added the other), so that
is what is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speculators.eagle.checkpoint import DERIVED_SUFFIX, EMBEDDING, attention_and_mlp_shapes
from speculators.eagle3.config import Eagle3Config
from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array, Tensors, dtype_of, find_file, read_tensors, write_safetensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DRAFT_TO_TARGET, TARGET_TO_DRAFT = "d2t", "t2d"

_LAYER = "midlayer"
_OTHER_LAYER = "layers.0."

Eagle3Checkpoint = Checkpoint[Eagle3Config]


def tensor_shapes(config: Eagle3Config, with_embedding: bool) -> Shapes:
    """Names and shapes of the tensors; `with_embedding` adds the target's token embedding."""
    width = config.hidden_size
    shapes: Shapes = {"fc.weight": (width, config.num_features * config.feature_width)}
    if config.bias:
        shapes["fc.bias"] = (width,)
    shapes |= attention_and_mlp_shapes(config, _LAYER, 2 * width)
    for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm"):
        shapes[f"{_LAYER}.{norm}.weight"] = (width,)
    shapes["norm.weight"] = (width,)
    shapes["lm_head.weight"] = (config.output_size, width)
    if config.has_vocabulary_map:
        shapes[DRAFT_TO_TARGET], shapes[TARGET_TO_DRAFT] = (config.output_size,), (config.vocab_size,)
    if with_embedding:
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
    found = read_tensors(path, lambda name: not name.endswith(DERIVED_SUFFIX))
    tensors = {_current_name(name): values for name, values in found.items()}
    if not config.has_vocabulary_map:
        _drop_identity_map(str(path), config, tensors)
    _check(str(path), config, tensors)
    if config.has_vocabulary_map:
        tensors[DRAFT_TO_TARGET] = tensors[DRAFT_TO_TARGET].astype(np.int64)
        tensors[TARGET_TO_DRAFT] = tensors[TARGET_TO_DRAFT].astype(np.bool_)
    return Checkpoint(config, tensors)


def save_checkpoint(checkpoint: Eagle3Checkpoint, directory: Path) -> None:
    """Write a checkpoint in the layout of the EAGLE repository into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    config = checkpoint.config
    _check(str(directory), config, checkpoint.tensors)
    write_safetensors(directory / WEIGHT_FILES[0], checkpoint.tensors)
    config = config.changed(draft_vocab_size=config.output_size)
    config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def target_ids(checkpoint: Eagle3Checkpoint) -> Array:
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


def _current_name(name: str) -> str:
    return f"{_LAYER}.{name.removeprefix(_OTHER_LAYER)}" if name.startswith(_OTHER_LAYER) else name


def _drop_identity_map(where: str, config: Eagle3Config, tensors: Tensors) -> None:
    """Some trainers store the maps also where both vocabularies are the same; then they must say nothing."""
    offsets, draftable = tensors.pop(DRAFT_TO_TARGET, None), tensors.pop(TARGET_TO_DRAFT, None)
    if (offsets is not None and offsets.any()) or (draftable is not None and not draftable.all()):
        raise CheckpointError(
            f"{where}: d2t or t2d reduces the vocabulary, but config.json has draft_vocab_size = "
            f"{config.output_size} = vocab_size"
        )


def _check(where: str, config: Eagle3Config, tensors: Mapping[str, Array]) -> None:
    shapes = tensor_shapes(config, with_embedding=EMBEDDING in tensors)
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
