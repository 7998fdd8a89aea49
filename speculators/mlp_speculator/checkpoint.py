"""MLP speculator weights: the Hugging Face layout `mlp_speculator`, in and out.

Tensors of the released checkpoints (ibm-ai-platform/llama3-8b-accelerator and its siblings; vLLM
`model_executor/models/mlp_speculator.py`), for stages i = 0 .. n-1, V tokens, width E of the target, width D:

    speculator.emb.{i}.weight    [V, D]
    speculator.proj.{i}.weight   [D, E] for i = 0, else [D, D]
    speculator.ln.{i}.weight     [D]
    speculator.ln.{i}.bias       [D]
    speculator.head.{i}.weight   [V, D]

The prefix `speculator.` is optional in files (fms-extras writes none). With `tie_weights` the stages share `emb`,
`ln`, `head` and all of `proj` but the first; such files hold one copy under any of its names, or equal copies. In
memory names have no prefix and shared tensors are stored once, under their first name. `scale_input` adds a norm
without weights.

Beside a draft vocabulary (`formats.draft_vocabulary`), `emb` and `head` are stored in its W rows. They are read into V
rows: embeddings of the other tokens are zero, and their output rows, all -1, score far below any other, since states
that come out of a GELU add up to a large number. Written again, that is a checkpoint that vLLM loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from speculators.formats.checkpoint import Checkpoint, Shapes, check_tensors
from speculators.formats.draft_vocabulary import placed, read_draft_vocabulary
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array, Tensors, dtype_of, find_file, read_tensors, write_safetensors
from speculators.mlp_speculator.config import MlpSpeculatorConfig

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

_PREFIX = "speculator."
_OF_VOCABULARY = ("emb.", "head.")
_NEVER = -1.0

MlpSpeculatorCheckpoint = Checkpoint[MlpSpeculatorConfig]


def tensor_shapes(config: MlpSpeculatorConfig) -> Shapes:
    """Names and shapes of the stored tensors, shared ones once."""
    shapes: Shapes = {}
    for name, shape in _stage_shapes(config).items():
        shapes.setdefault(stored_name(config, name), shape)
    return shapes


def load_checkpoint(directory: Path) -> MlpSpeculatorCheckpoint:
    """Read a checkpoint directory.

    Raises:
        CheckpointError: a file is missing or damaged, or the tensors do not fit the config.
    """
    config = MlpSpeculatorConfig.read(directory)
    found = read_tensors(find_file(directory, WEIGHT_FILES))
    tensors = _merge_shared(str(directory), config, found)
    kept = read_draft_vocabulary(directory, config.vocab_size)
    if kept is not None:
        check_tensors(str(directory), tensors, tensor_shapes(config.changed(vocab_size=len(kept))))
        for name in tensors:
            if name.startswith(_OF_VOCABULARY):
                fill = 0.0 if name.startswith("emb.") else _NEVER
                tensors[name] = placed(tensors[name], kept, config.vocab_size, fill)
    check_tensors(str(directory), tensors, tensor_shapes(config))
    return Checkpoint(config, tensors)


def in_rows(checkpoint: MlpSpeculatorCheckpoint, kept: Array) -> MlpSpeculatorCheckpoint:
    """A checkpoint whose vocabulary is the draft vocabulary `kept`: `emb` and `head` in its rows alone."""
    tensors = {
        name: values[kept] if name.startswith(_OF_VOCABULARY) else values
        for name, values in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.config.changed(vocab_size=len(kept)), tensors)


def save_checkpoint(checkpoint: MlpSpeculatorCheckpoint, directory: Path) -> None:
    """Write a checkpoint that vLLM loads into an existing directory; the config comes last.

    Raises:
        CheckpointError: the tensors do not fit the config.
        OSError: the directory cannot be written.
    """
    check_tensors(str(directory), checkpoint.tensors, tensor_shapes(checkpoint.config))
    _write(checkpoint, directory)


def save_rows(checkpoint: MlpSpeculatorCheckpoint, directory: Path) -> None:
    """Write a checkpoint whose `emb` and `head` have the rows of the draft vocabulary that is in the directory.

    Raises:
        CheckpointError: there is none, or the tensors do not fit it and the config.
        OSError: the directory cannot be written.
    """
    kept = read_draft_vocabulary(directory, checkpoint.config.vocab_size)
    if kept is None:
        raise CheckpointError(f"{directory} has no draft vocabulary; write it first")
    shapes = tensor_shapes(checkpoint.config.changed(vocab_size=len(kept)))
    check_tensors(str(directory), checkpoint.tensors, shapes)
    _write(checkpoint, directory)


def _write(checkpoint: MlpSpeculatorCheckpoint, directory: Path) -> None:
    prefixed = {_PREFIX + name: values for name, values in checkpoint.tensors.items()}
    write_safetensors(directory / WEIGHT_FILES[0], prefixed)
    checkpoint.config.stored_as(dtype_of(checkpoint.tensors)).write(directory)


def stored_name(config: MlpSpeculatorConfig, name: str) -> str:
    """Under which name a stage's tensor, like `emb.2.weight`, is in memory."""
    if not config.tie_weights:
        return name
    part, stage, rest = name.split(".")
    return f"{part}.{min(int(stage), 1) if part == 'proj' else 0}.{rest}"


def _stage_shapes(config: MlpSpeculatorConfig) -> Shapes:
    vocabulary, width = config.vocab_size, config.width
    shapes: Shapes = {}
    for stage in range(config.n_predict):
        shapes[f"emb.{stage}.weight"] = (vocabulary, width)
        shapes[f"proj.{stage}.weight"] = (width, config.emb_dim if stage == 0 else width)
        shapes[f"ln.{stage}.weight"] = (width,)
        shapes[f"ln.{stage}.bias"] = (width,)
        shapes[f"head.{stage}.weight"] = (vocabulary, width)
    return shapes


def _merge_shared(where: str, config: MlpSpeculatorConfig, found: Mapping[str, Array]) -> Tensors:
    """Names without prefix, one copy of what is shared; names that no stage has are left for the check."""
    known = _stage_shapes(config)
    tensors: Tensors = {}
    first: dict[str, str] = {}
    for full, values in found.items():
        name = full.removeprefix(_PREFIX)
        stored = stored_name(config, name) if name in known else name
        if stored in tensors and not np.array_equal(tensors[stored], values):
            raise CheckpointError(
                f"{where}: tie_weights is true, but {full} differs from {first[stored]}; set it to false"
            )
        tensors.setdefault(stored, values)
        first.setdefault(stored, full)
    return tensors
