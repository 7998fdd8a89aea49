"""What a cache holds, whichever kernel it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.attention_kernels import NativeKernel
from engine.runner import BLOCK_SIZE


def cache_row(kernel: Any, block: int, row: int) -> NDArray[np.generic]:
    """Bytes that are equal if keys and values are, of all layers and heads.

    Those of the kit's own kernel lie as `engine/native/cache.hpp` says.
    """
    if not isinstance(kernel, NativeKernel):
        values: NDArray[np.generic] = kernel.caches[:, block, :, row]
        return values
    shape = kernel.cache.shape
    parts = kernel.cache.memory[:, block].reshape(shape.layers * shape.kv_heads, -1)
    size, width = shape.head_size, {"fp32": 4, "fp16": 2, "int8": 1}[shape.precision]
    keys, values, scales = np.split(parts, [BLOCK_SIZE * size * width, 2 * BLOCK_SIZE * size * width], axis=1)
    if width > 1:
        keys = keys.reshape(-1, size, BLOCK_SIZE, width)[:, :, row]
        values = values.reshape(-1, BLOCK_SIZE, size, width)[:, row]
    else:
        keys = keys.reshape(-1, size // 4, BLOCK_SIZE, 4)[:, :, row]
        values = values.reshape(-1, BLOCK_SIZE // 4, size, 4)[:, row // 4, :, row % 4]
    scales = scales.reshape(len(parts), -1, BLOCK_SIZE, 4)[:, :, row]  # of keys and values, in int8
    return np.concatenate([part.reshape(len(parts), -1) for part in (keys, values, scales)], axis=1)


def poison(kernel: Any, blocks: Iterable[int]) -> None:
    """Fill blocks with what nobody may ever read: NaN, in int8 -1 with a scale of NaN."""
    if isinstance(kernel, NativeKernel):
        kernel.cache.memory[:, list(blocks)] = 0xFF  # bytes of all ones
    else:
        kernel.caches[:, list(blocks)] = np.nan
