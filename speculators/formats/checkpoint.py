"""A drafter checkpoint in memory, and the strict checks that stand between a file and its use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

import numpy as np

from speculators.formats.config import ConfigType
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import FLOAT_TYPES, Array, Tensors, is_float, joined

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Checkpoint(Generic[ConfigType]):
    """A config and its weights by the family's own names (those of the family's `checkpoint` module)."""

    config: ConfigType
    tensors: Tensors


def check_tensors(
    where: str, tensors: Mapping[str, Array], shapes: Shapes, integers: frozenset[str] = frozenset()
) -> None:
    """Exactly the expected tensors, in their shapes, with finite weights.

    Args:
        where: what errors call the checkpoint.
        tensors: what was found.
        shapes: what must be there.
        integers: tensors of `shapes` that hold no weights but integers or truth values.

    Raises:
        CheckpointError: a tensor is missing, unexpected, of another shape or type, or holds values that are not
            finite (weights are NaN until they are loaded, so a model that was never loaded is caught here).
    """
    missing, unexpected = shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys()
    if missing or unexpected:
        parts = [f"missing {joined(missing)}"] if missing else []
        parts += [f"unexpected {joined(unexpected)}"] if unexpected else []
        raise CheckpointError(f"{where}: the tensors do not fit config.json: {'; '.join(parts)}")
    for name, shape in shapes.items():
        _check_tensor(where, name, tensors[name], shape, integer=name in integers)


def tensor_shape(where: str, tensors: Mapping[str, Array], name: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor from which sizes are read.

    Raises:
        CheckpointError: it is missing or has another number of axes.
    """
    if name not in tensors:
        raise CheckpointError(f"{where}: {name} is missing")
    shape = tensors[name].shape
    if len(shape) != rank:
        raise CheckpointError(f"{where}: {name} has shape {list(shape)}; it must have {rank} axes")
    return shape


def _check_tensor(where: str, name: str, values: Array, shape: tuple[int, ...], integer: bool) -> None:
    if values.shape != shape:
        raise CheckpointError(
            f"{where}: {name} has shape {list(values.shape)}; config.json says {list(shape)}"
        )
    if integer:
        if values.dtype.kind not in "iub":
            raise CheckpointError(f"{where}: {name} is stored as {values.dtype}; it must hold integers")
        return
    if not is_float(values):
        raise CheckpointError(
            f"{where}: {name} is stored as {values.dtype}; weights must be one of {', '.join(FLOAT_TYPES)}"
        )
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{where}: {name} holds values that are not finite; it was never loaded or trained"
        )
