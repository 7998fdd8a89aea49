"""ReDrafter heads: the layout of apple/ml-recurrent-drafter, in and out.

Tensors of `model.safetensors` or `model.pt` (drafter of ml-recurrent-drafter 1.1; TensorRT-LLM 1.2.1,
`examples/redrafter/convert_checkpoint.py`), for width H, exit width X, V tokens, blocks i = 0 .. n-1:

    input_proj.weight         [X, 2H]    only where X differs from 2H
    input_proj.bias           [X]
    lm_head.{i}.linear.weight [X, X]
    lm_head.{i}.linear.bias   [X]
    lm_head.{n}.weight        [V, X]
    rnn_u.weight              [H, H]     rnn_* only where config.rnn
    rnn_u.bias                [H]
    rnn_w.weight              [H, H]

Files of earlier trainers say `input_projs` and `lm_heads`, or `0.{i}` instead of `lm_head.{i}`; they are read too.
"""

from __future__ import annotations

from pathlib import Path

from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Tensors, dtype_of, find_file, read_tensors, write_safetensors
from speculators.redrafter.config import RedrafterConfig

WEIGHT_FILES = ("model.safetensors", "model.pt")

_OLDER_NAMES = {"input_projs.": "input_proj.", "lm_heads.": "lm_head.", "0.": "lm_head."}

RedrafterCheckpoint = Checkpoint[RedrafterConfig]


def tensor_shapes(config: RedrafterConfig) -> Shapes:
    """Names and shapes of the tensors."""
    width, exit_width = config.hidden_size, config.exit_dim
    shapes: Shapes = {}
    if config.has_input_projection:
        shapes["input_proj.weight"] = (exit_width, 2 * width)
        shapes["input_proj.bias"] = (exit_width,)
    for block in range(config.num_draft_layers):
        shapes[f"lm_head.{block}.linear.weight"] = (exit_width, exit_width)
        shapes[f"lm_head.{block}.linear.bias"] = (exit_width,)
    shapes[output_name(config)] = (config.vocab_size, exit_width)
    if config.rnn:
        shapes["rnn_u.weight"] = (width, width)
        shapes["rnn_u.bias"] = (width,)
        shapes["rnn_w.weight"] = (width, width)
    return shapes


def output_name(config: RedrafterConfig) -> str:
    """Name of the output matrix."""
    return f"lm_head.{config.num_draft_layers}.weight"


def load_checkpoint(directory: Path) -> RedrafterCheckpoint:
    """Read a checkpoint directory.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors do not fit the config.
    """
    config = RedrafterConfig.read(directory)
    path = find_file(directory, WEIGHT_FILES)
    tensors: Tensors = {}
    for name, values in read_tensors(path).items():
        current = _current_name(name)
        if current in tensors:
            raise CheckpointError(f"{path}: {name} is there twice, under an older name and as {current}")
        tensors[current] = values
    check_tensors(str(path), tensors, tensor_shapes(config))
    return Checkpoint(config, tensors)


def save_checkpoint(checkpoint: RedrafterCheckpoint, directory: Path) -> None:
    """Write a checkpoint into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    check_tensors(str(directory), checkpoint.tensors, tensor_shapes(checkpoint.config))
    write_safetensors(directory / WEIGHT_FILES[0], checkpoint.tensors)
    checkpoint.config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def _current_name(name: str) -> str:
    for older, current in _OLDER_NAMES.items():
        if name.startswith(older):
            return current + name.removeprefix(older)
    return name
