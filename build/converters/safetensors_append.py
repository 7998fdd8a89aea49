"""Copying a safetensors file and adding tensors at its end, without reading the old ones into memory.

A target's rank file holds gigabytes, in types that NumPy may not know (fp8, packed int4). They are copied byte for
byte; only the header is written anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from build.converters.errors import ConversionError
from deployments.files.safetensors import header_bytes, read_whole_header
from speculators.formats.tensors import FLOAT_TYPES, Array

_TYPE_NAMES = {FLOAT_TYPES["float32"]: "F32", FLOAT_TYPES["float16"]: "F16", FLOAT_TYPES["bfloat16"]: "BF16"}

_COPY_BYTES = 2**24


def append_tensors(source: Path, destination: Path, tensors: Mapping[str, Array]) -> None:
    """Write `destination` with all tensors of `source` and these weights.

    Raises:
        ConversionError: `source` is damaged, truncated, or has one of the tensors already.
        OSError: a file cannot be read or written.
    """
    header, start = read_whole_header(source, damaged)
    twice = sorted(header.keys() & tensors.keys())
    if twice:
        raise ConversionError(
            f"{source} has {twice[0]} already; give the target as it was before a drafter was added"
        )
    end = source.stat().st_size - start
    whole = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    for name, values in whole.items():
        header[name] = {
            "dtype": _TYPE_NAMES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [end, end + values.nbytes],
        }
        end += values.nbytes
    with source.open("rb") as old, destination.open("wb") as new:
        new.write(header_bytes(header))
        old.seek(start)
        shutil.copyfileobj(old, new, _COPY_BYTES)
        for values in whole.values():
            new.write(values.tobytes())


def damaged(reason: str) -> ConversionError:
    """The error for a file of a target's checkpoint."""
    return ConversionError(f"{reason}; convert the target again")
