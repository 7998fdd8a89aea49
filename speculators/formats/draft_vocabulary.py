"""The draft vocabulary of heads whose published layout has none: a file beside their weights.

`draft_vocabulary.safetensors` holds `token_map`, int64 ``[W]``, the target's ids that can be drafted, ascending: vLLM's
name for it. Output matrices were trained in those rows alone, so an engine may leave the others out. Where a family
stores matrices of V rows (token embedding, output), the checkpoint beside this file holds just the W rows; reading it
puts them in place. Heads that use the target's output matrix have its W rows here as well, `lm_head.weight` ``[W, H]``,
for vLLM, which loads all files of a directory and does not share the target's. (EAGLE-3 has `d2t` and `t2d` in its own
layout.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array, Tensors, read_tensors, write_safetensors

VOCABULARY_FILE = "draft_vocabulary.safetensors"

TOKEN_MAP = "token_map"
_EARLIER_NAME = "kept"  # what the kit wrote before it took vLLM's name
TARGET_OUTPUT = "lm_head.weight"


def read_draft_vocabulary(directory: Path, vocab_size: int) -> Array | None:
    """Target ids that can be drafted, or None where there is no such file: all of them.

    Raises:
        CheckpointError: the file is damaged, or names tokens that the target does not have.
    """
    path = directory / VOCABULARY_FILE
    if not path.is_file():
        return None
    tensors = read_tensors(path, lambda name: name in (TOKEN_MAP, _EARLIER_NAME))
    kept = tensors.get(TOKEN_MAP, tensors.get(_EARLIER_NAME))
    if kept is None or kept.ndim != 1 or kept.dtype != np.int64 or not kept.size:
        raise CheckpointError(f"{path}: expected one list of int64 ids named {TOKEN_MAP!r}")
    if kept[0] < 0 or kept[-1] >= vocab_size or (np.diff(kept) <= 0).any():
        raise CheckpointError(
            f"{path}: ids must ascend within 0 to {vocab_size - 1}, the target's vocabulary"
        )
    return kept


def drafted_ids(directory: Path, vocab_size: int) -> Array:
    """Target ids that can be drafted, int64, ascending: those of the file, else all.

    Raises:
        CheckpointError: as `read_draft_vocabulary`.
    """
    kept = read_draft_vocabulary(directory, vocab_size)
    return np.arange(vocab_size, dtype=np.int64) if kept is None else kept


def write_draft_vocabulary(directory: Path, kept: Array, output: Array | None = None) -> None:
    """Write the file into an existing directory; `output` is the target's output matrix in the rows that are kept.

    Raises:
        OSError: the directory cannot be written.
    """
    tensors: Tensors = {TOKEN_MAP: np.asarray(kept, dtype=np.int64)}
    if output is not None:
        tensors[TARGET_OUTPUT] = output
    write_safetensors(directory / VOCABULARY_FILE, tensors)


def placed(rows: Array, kept: Array, vocab_size: int, fill: float) -> Array:
    """A matrix ``[V, D]`` with `rows` ``[W, D]`` where they belong and `fill` in the others."""
    whole = np.full((vocab_size, rows.shape[1]), fill, dtype=rows.dtype)
    whole[kept] = rows
    return whole
