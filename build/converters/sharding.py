"""Tensor parallelism: what TensorRT-LLM's column-parallel layers hold on each rank, and the whole from its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from build.converters.errors import ConversionError
from speculators.formats.tensors import Array, Tensors


def padded_vocabulary(vocab_size: int, tp_size: int) -> int:
    """The next multiple of `tp_size`, as TensorRT-LLM's `pad_vocab_size`."""
    return -(-vocab_size // tp_size) * tp_size


def pad_rows(values: Array, rows: int) -> Array:
    """Zero rows up to `rows`; a token of the padding gets logit 0 and is cut off by the runtime."""
    missing = rows - values.shape[0]
    if missing == 0:
        return values
    return np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])


def split(name: str, values: Array, tp_size: int, axis: int = 0) -> list[Array]:
    """Equal parts, one for each rank.

    Raises:
        ConversionError: the axis is not divisible.
    """
    require_divisible(name, values.shape[axis], tp_size)
    return [np.ascontiguousarray(part) for part in np.split(values, tp_size, axis=axis)]


def split_all(tensors: Tensors, names: Mapping[str, str], prefix: str, tp_size: int) -> list[Tensors]:
    """For each rank its parts of the tensors that `names` lists, under `prefix` and the names that it gives them.

    Raises:
        ConversionError: the first axis of one is not divisible.
    """
    parts: list[Tensors] = [{} for _ in range(tp_size)]
    for name, renamed in names.items():
        for part, shard in zip(parts, split(name, tensors[name], tp_size), strict=True):
            part[prefix + renamed] = shard
    return parts


def join(parts: Sequence[Array], axis: int = 0) -> Array:
    """The inverse of `split`."""
    return np.concatenate(list(parts), axis=axis)


def require_divisible(name: str, size: int, tp_size: int) -> None:
    """Refuse a size that tensor parallelism cannot share out.

    Raises:
        ConversionError: `size` is not divisible by `tp_size`.
    """
    if size % tp_size:
        raise ConversionError(f"{name}: {size} is not divisible by the tensor-parallel size {tp_size}")


def split_key_values(name: str, values: Array, heads: int, tp_size: int) -> list[Array]:
    """Rows of key or value heads; with fewer heads than ranks each head serves several ranks.

    Raises:
        ConversionError: neither divides the other.
    """
    if heads >= tp_size:
        require_divisible(f"{name}: heads", heads, tp_size)
        return split(name, values, tp_size)
    if tp_size % heads:
        raise ConversionError(
            f"{name}: {heads} heads cannot be shared out over {tp_size} tensor-parallel ranks"
        )
    return [head for head in split(name, values, heads) for _ in range(tp_size // heads)]


def join_key_values(parts: Sequence[Array], heads: int) -> Array:
    """The inverse of `split_key_values`."""
    return join(parts[:: max(1, len(parts) // heads)])
