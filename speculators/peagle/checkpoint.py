"""P-EAGLE weights: the layout of the speculators library and of NeMo AutoModel, which vLLM reads, in and out.

Tensors of `model.safetensors` (vllm-project/speculators `models/peagle/core.py`, NVIDIA-NeMo/Automodel
`components/speculative/eagle/draft_llama.py`; vLLM reads them in `model_executor/models/llama_eagle3.py`) are those of
EAGLE-3 (`speculators.eagle3.checkpoint`), the layer by the name of `layers.0`, and besides

    mask_hidden                               [1, 1, F T]  in place of the target's features at a mask; or [1, F T]
    layers.{i}.self_attn.{q,k,v}_proj.weight  [Q or K, H]  of further layers i, which are plain ones
    layers.{i}.self_attn.{q,k,v,o}_proj.bias  [Q, K or H]  of all layers, where config.attention_bias
    layers.{i}.self_attn.{q,k}_norm.weight    [D]          with Qwen3's layer
    layers.{i}.self_attn.o_proj.weight        [H, Q]
    layers.{i}.mlp.{gate,up,down}_proj.weight
    layers.{i}.{input,post_attention}_layernorm.weight  [H]

vLLM's further layers have a `hidden_norm` that they do not use; one that is stored is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from speculators.eagle.checkpoint import EMBEDDING
from speculators.eagle3.checkpoint import (
    OUTPUT,
    WEIGHT_FILES,
    check,
    common_name,
    first_layer_shapes,
    fusion_shapes,
    is_drafters,
    layer_shapes,
    output_shapes,
    settle_map,
    type_map,
    write,
)
from speculators.formats.checkpoint import Checkpoint, Shapes
from speculators.formats.tensors import Tensors, find_file, read_tensors
from speculators.peagle.config import PEagleConfig

MASK_HIDDEN = "mask_hidden"

_LAYER = re.compile(r"^layers\.(\d+)\.")
_UNUSED = re.compile(r"^layers\.[1-9]\d*\.hidden_norm\.")

PEagleCheckpoint = Checkpoint[PEagleConfig]


def tensor_shapes(config: PEagleConfig, optional: Collection[str] = (OUTPUT,)) -> Shapes:
    """Names and shapes; of the tensors that are the target's own where they are absent, the `optional` ones."""
    shapes = fusion_shapes(config) | first_layer_shapes(config, "layers.0")
    for layer in range(1, config.num_hidden_layers):
        shapes |= layer_shapes(config, f"layers.{layer}", config.hidden_size)
    shapes[MASK_HIDDEN] = (1, 1, config.num_features * config.feature_width)
    return shapes | output_shapes(config, optional)


def load_checkpoint(directory: Path) -> PEagleCheckpoint:
    """Read a checkpoint directory.

    Raises:
        CheckpointError: a file is missing or damaged, the tensors do not fit the config, or the vocabulary maps
            contradict each other.
    """
    config = PEagleConfig.read(directory)
    path = find_file(directory, WEIGHT_FILES)
    named = {current_name(name): values for name, values in read_tensors(path, is_drafters).items()}
    tensors = {name: values for name, values in named.items() if not _UNUSED.match(name)}
    config = _as_stored(config, tensors)
    settle_map(str(path), config, tensors)
    if MASK_HIDDEN in tensors:
        tensors[MASK_HIDDEN] = tensors[MASK_HIDDEN].reshape(1, 1, -1)
    _check(str(path), config, tensors)
    type_map(config, tensors)
    return Checkpoint(config, tensors)


def save_checkpoint(checkpoint: PEagleCheckpoint, directory: Path) -> None:
    """Write a checkpoint with a flat config into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    _check(str(directory), checkpoint.config, checkpoint.tensors)
    write(checkpoint, directory)


def current_name(name: str) -> str:
    """What a tensor of EAGLE-3's, or one by another name, is called here."""
    return re.sub(r"^midlayer\.", "layers.0.", common_name(name))


def _as_stored(config: PEagleConfig, tensors: Tensors) -> PEagleConfig:
    """The config of what is stored: published ones may count the target's layers, or name its class."""
    layers = [int(found[1]) for name in tensors if (found := _LAYER.match(name))]
    normed = any(name.startswith("layers.0.self_attn.q_norm.") for name in tensors)
    return config.changed(
        num_hidden_layers=max(layers, default=0) + 1, model_type="qwen3" if normed else "llama"
    )


def _check(where: str, config: PEagleConfig, tensors: Tensors) -> None:
    check(where, config, tensors, tensor_shapes(config, tensors.keys() & {EMBEDDING, OUTPUT}))
