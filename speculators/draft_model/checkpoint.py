"""A distilled draft on disk: a Hugging Face model without the matrices that are the target's.

Embedding and output matrix would be three quarters of a small draft, and they are the target's. So a draft can be kept
and passed on without them; `complete_draft` puts them in, and what it writes is a model like any other, for every
engine.

    config.json  model.safetensors  model.safetensors.index.json  draft_vocabulary.safetensors

The index says that the last file is none of the model's: engines that take every safetensors file of a directory for
weights go by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deployments.files.directories import replace_directory
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from speculators.formats.config import PublishedConfig
from speculators.formats.draft_vocabulary import VOCABULARY_FILE, write_draft_vocabulary
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import (
    Array,
    Tensors,
    dtype_of,
    find_file,
    read_tensors,
    tensor_names,
    write_safetensors,
)

WEIGHT_FILES = ("model.safetensors",)
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_COMPLETED_MARK = "drafthouse.json"


def save_draft(config: Mapping[str, Any], tensors: Tensors, kept: Array, directory: Path) -> None:
    """Write a draft into an existing directory; the config comes last.

    Args:
        config: `config.json` of the draft as Transformers writes it.
        tensors: all weights but embedding and output matrix.
        kept: target ids that can be drafted.

    Raises:
        OSError: the directory cannot be written.
    """
    _write_weights(tensors, directory)
    write_draft_vocabulary(directory, kept)
    PublishedConfig.parse(dict(config), str(directory)).stored_as(dtype_of(tensors)).write(directory)


def complete_draft(draft: Path, target: Path, directory: Path) -> None:
    """Write the whole model into an existing directory, with the target's embedding, output matrix and tokenizer.

    `directory` may be that of the draft. A draft that has its own embedding keeps it.

    Raises:
        CheckpointError: a file is damaged, or the draft was cut out of another model.
        OSError: the directory cannot be written.
    """
    tensors = read_tensors(find_file(draft, WEIGHT_FILES))
    config = PublishedConfig.read(draft)
    if EMBEDDING not in tensors:
        tensors |= _shared(draft, target)
    _write_weights(tensors, directory)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        if (target / name).is_file():
            (directory / name).write_bytes((target / name).read_bytes())
    config.stored_as(dtype_of(tensors)).write(directory)


def is_whole(draft: Path) -> bool:
    """Whether a draft has its embedding. One that `save_draft` has not written does, under whatever name.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    if not (draft / VOCABULARY_FILE).is_file():
        return True
    return EMBEDDING in tensor_names(find_file(draft, WEIGHT_FILES))


def whole_model(draft: Path, target: Path, directory: Path) -> Path:
    """Where a draft is with all its weights: its own directory, or `directory`, in whose place it is completed.

    Raises:
        CheckpointError: a file is damaged, or the draft was cut out of another model.
        ForeignDirectoryError, DirectoryInUseError, OSError: as of `replace_directory`.
    """
    if is_whole(draft):
        return draft
    with replace_directory(directory, _COMPLETED_MARK) as staging:
        complete_draft(draft, target, staging)
        (staging / _COMPLETED_MARK).write_text('{"made_by": "drafthouse"}\n', encoding="utf-8")
    return directory


def _write_weights(tensors: Tensors, directory: Path) -> None:
    weights = directory / WEIGHT_FILES[0]
    write_safetensors(weights, tensors)
    index = {
        "metadata": {"total_size": sum(values.nbytes for values in tensors.values())},
        "weight_map": dict.fromkeys(sorted(tensors), weights.name),
    }
    write_json(directory / f"{weights.name}.index.json", index)


def _shared(draft: Path, target: Path) -> Tensors:
    ours, theirs = (read_json_object(path / "config.json", CheckpointError) for path in (draft, target))
    for key in ("vocab_size", "hidden_size"):
        if ours.get(key) != theirs.get(key):
            raise CheckpointError(
                f"{draft} has {key} {ours.get(key)} and takes its embedding from its target, but {target} has "
                f"{theirs.get(key)}; it was cut out of another model"
            )
    return read_tensors(find_file(target, WEIGHT_FILES), lambda name: name in (EMBEDDING, OUTPUT))
