"""How weights are rounded: to eight bits an output channel, or to four bits in groups of 32 inputs."""

import numpy as np
from numpy.typing import NDArray

LINEAR = "Linear"
"""Operator of the kit's graphs: rows [tokens, in], codes, scales and least values of `grouped` -> [tokens, out]."""
GROUP = 32
_OUTPUTS = 16
_MOST = 15


def quantize_rows(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per output channel: weight [out, in] is about values [out, in] * scale [out]."""
    scale = np.abs(weight).max(axis=1) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale).astype(np.float32)
    return np.rint(weight / scale[:, None]).astype(np.int8), scale


def can_be_grouped(shape: tuple[int, ...]) -> bool:
    """Whether weights [out, in] have whole groups, and outputs for whole tiles of the kernel."""
    return shape[0] % _OUTPUTS == 0 and shape[1] % GROUP == 0


def eight_bit_bytes(shape: tuple[int, ...]) -> int:
    """What `quantize_rows` makes of weights [out, in]."""
    return shape[0] * (shape[1] + 4)


def four_bit_bytes(shape: tuple[int, ...]) -> int:
    """What `grouped` makes of weights [out, in]."""
    return shape[0] * shape[1] // GROUP * (GROUP // 2 + 4)  # a scale and a least value of 16 bits each


def grouped(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    """Asymmetric four bits in groups of 32 inputs, as GGUF's Q4_1: weight is about code * scale + least.

    What was in that format comes out as it was, since there the codes of a group reach from 0 to 15.

    Returns:
        codes uint8 [out, in / 2], input 2i in the low half of byte i; scales and least values fp16 [out, in / 32].
    """
    groups = weight.astype(np.float32).reshape(len(weight), -1, GROUP)
    least = groups.min(axis=2).astype(np.float16)
    scale = ((groups.max(axis=2) - groups.min(axis=2)) / np.float32(_MOST)).astype(np.float16)
    step = np.where(scale == 0, np.float32(1), scale.astype(np.float32))
    codes = np.rint((groups - least.astype(np.float32)[..., None]) / step[..., None]).clip(0, _MOST)
    pairs = codes.astype(np.uint8).reshape(len(weight), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4, scale, least


def ungrouped(
    codes: NDArray[np.uint8], scales: NDArray[np.float16], least: NDArray[np.float16]
) -> NDArray[np.float32]:
    """What `grouped` weights stand for, [out, in]."""
    plain = np.stack([codes & _MOST, codes >> 4], axis=2).reshape(len(codes), -1, GROUP)
    scale, shift = scales.astype(np.float32)[..., None], least.astype(np.float32)[..., None]
    values: NDArray[np.float32] = plain.astype(np.float32) * scale + shift
    return values.reshape(len(codes), -1)
