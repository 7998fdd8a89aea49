"""Choices that all families share: layout, weight type, tensor parallelism; each checked against the target."""

from __future__ import annotations

from typing import Literal

from build.converters.engine_checkpoint import EngineCheckpoint
from build.converters.errors import ConversionError
from build.converters.target import Target
from speculators.formats.tensors import FLOAT_TYPES

Layout = Literal["checkpoint", "source"]


def engine_target(target: Target, dtype: str | None, tp_size: int | None) -> EngineCheckpoint:
    """The target's checkpoint, if it is one and is what was asked for: an engine has one type and one mapping.

    Raises:
        ConversionError: the target is in Hugging Face layout, or of another type or tensor parallelism.
    """
    if not isinstance(target, EngineCheckpoint):
        raise ConversionError(
            f"{target.directory} is in Hugging Face layout; the layout `checkpoint` adds the drafter to a TensorRT-LLM "
            "checkpoint: make it with convert_checkpoint.py of the target's family and give that directory, or "
            "convert to the layout `source`"
        )
    if weight_dtype(dtype) not in (None, target.dtype):
        raise ConversionError(
            f"dtype {dtype} was asked for, but {target.directory} has {target.dtype}; an engine has one type"
        )
    if tp_size not in (None, target.tp_size):
        raise ConversionError(
            f"tensor-parallel size {tp_size} was asked for, but {target.directory} was made for {target.tp_size}; "
            "convert the target again"
        )
    return target


def weight_dtype(dtype: str | None) -> str | None:
    """A type that weights can have, or None where none was asked for.

    Raises:
        ConversionError: weights cannot have it.
    """
    if dtype is not None and dtype not in FLOAT_TYPES:
        raise ConversionError(f"dtype {dtype!r} is none of {', '.join(FLOAT_TYPES)}")
    return dtype
