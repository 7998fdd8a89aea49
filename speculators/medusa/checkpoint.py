"""Medusa heads: the layouts of the Medusa repository, in and out.

Tensors of `medusa_lm_head.pt` or `medusa_lm_head.safetensors` (FasterDecoding/medusa-vicuna-7b-v1.3 and its
siblings), for heads k, residual blocks l = 0 .. L-1, width H of the target, V tokens:

    {k}.{l}.linear.weight   [H, H]
    {k}.{l}.linear.bias     [H]
    {k}.{L}.weight          [V, H]     output matrix

Heads that the repository's `train_legacy.py` wrote have no output matrices; the target's own serves all of them.
Whole models of Medusa 1.0 hold the same tensors behind the prefix `medusa_head.` in `model.safetensors`. The v0.1
releases say `medusa_num_heads: 2` over files with five heads: the file is believed where it holds more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors, tensor_shape
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import (
    Array,
    Tensors,
    dtype_of,
    find_file,
    read_tensors,
    write_pickle,
    write_safetensors,
)
from speculators.medusa.config import MedusaConfig

HEAD_FILES = ("medusa_lm_head.safetensors", "medusa_lm_head.pt")
MODEL_FILES = ("model.safetensors",)

FileFormat = Literal["safetensors", "pt"]

_PREFIX = "medusa_head."

MedusaCheckpoint = Checkpoint[MedusaConfig]


def tensor_shapes(config: MedusaConfig, hidden_size: int, vocab_size: int | None) -> Shapes:
    """Names and shapes of the tensors; `vocab_size` None for heads without output matrices."""
    shapes: Shapes = {}
    for head in range(config.medusa_num_heads):
        for block in range(config.medusa_num_layers):
            shapes[f"{head}.{block}.linear.weight"] = (hidden_size, hidden_size)
            shapes[f"{head}.{block}.linear.bias"] = (hidden_size,)
        if vocab_size is not None:
            shapes[output_name(config, head)] = (vocab_size, hidden_size)
    return shapes


def output_name(config: MedusaConfig, head: int) -> str:
    """Name of a head's output matrix."""
    return f"{head}.{config.medusa_num_layers}.weight"


def hidden_size(checkpoint: MedusaCheckpoint) -> int:
    """H, the width of the target for which the heads were trained."""
    return checkpoint.tensors["0.0.linear.weight"].shape[0]


def vocab_size(checkpoint: MedusaCheckpoint) -> int | None:
    """V, or None where the heads have no output matrices."""
    output = checkpoint.tensors.get(output_name(checkpoint.config, 0))
    return None if output is None else output.shape[0]


def load_checkpoint(directory: Path) -> MedusaCheckpoint:
    """Read a directory of heads, or the heads of a whole Medusa 1.0 model.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors do not fit the config.
    """
    config = MedusaConfig.read(directory)
    path = find_file(directory, (*HEAD_FILES, *MODEL_FILES))
    if path.name in HEAD_FILES:
        tensors = read_tensors(path)
    else:
        whole = read_tensors(path, lambda name: name.startswith(_PREFIX))
        tensors = {name.removeprefix(_PREFIX): values for name, values in whole.items()}
    found = _number_of_heads(tensors)
    if found > config.medusa_num_heads:
        config = config.changed(medusa_num_heads=found)
    _check(str(path), config, tensors)
    return Checkpoint(config, tensors)


def save_checkpoint(
    checkpoint: MedusaCheckpoint, directory: Path, file_format: FileFormat = "safetensors"
) -> None:
    """Write heads into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config, or PyTorch, which `pt` needs, is not installed.
        OSError: the directory cannot be written.
    """
    _check(str(directory), checkpoint.config, checkpoint.tensors)
    if file_format == "pt":
        write_pickle(directory / HEAD_FILES[1], checkpoint.tensors)
    else:
        write_safetensors(directory / HEAD_FILES[0], checkpoint.tensors)
    checkpoint.config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def first_heads(checkpoint: MedusaCheckpoint, count: int) -> MedusaCheckpoint:
    """The heads nearest to the hidden state; the later ones, rarely accepted, are dropped.

    Raises:
        CheckpointError: there are fewer heads, or `count` is below 1.
    """
    if not 1 <= count <= checkpoint.config.medusa_num_heads:
        raise CheckpointError(
            f"{count} heads were asked for; there are {checkpoint.config.medusa_num_heads}, and it needs at least 1"
        )
    kept: Tensors = {name: values for name, values in checkpoint.tensors.items() if _head(name) < count}
    return Checkpoint(checkpoint.config.changed(medusa_num_heads=count), kept)


def _check(where: str, config: MedusaConfig, tensors: Mapping[str, Array]) -> None:
    width, _ = tensor_shape(where, tensors, "0.0.linear.weight", rank=2)
    output = output_name(config, 0)
    rows = tensor_shape(where, tensors, output, rank=2)[0] if output in tensors else None
    check_tensors(where, tensors, tensor_shapes(config, width, rows))


def _number_of_heads(tensors: Mapping[str, Array]) -> int:
    return 1 + max((_head(name) for name in tensors), default=-1)


def _head(name: str) -> int:
    number = name.partition(".")[0]
    return int(number) if number.isdecimal() else -1
