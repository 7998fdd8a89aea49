"""Copying a safetensors file and adding tensors at its end, without reading the old ones into memory.

A target's rank file holds gigabytes, in types that NumPy may not know (fp8, packed int4). They are copied byte for
byte; only the header is written anew. The format is an eight-byte length, a JSON header with type, shape and byte
range of every tensor, and the tensors (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from build.converters.errors import ConversionError
from speculators.formats.tensors import FLOAT_TYPES, Array

_TYPE_NAMES = {FLOAT_TYPES["float32"]: "F32", FLOAT_TYPES["float16"]: "F16", FLOAT_TYPES["bfloat16"]: "BF16"}

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100 * 2**20  # of the format
_COPY_BYTES = 2**24


def append_tensors(source: Path, destination: Path, tensors: Mapping[str, Array]) -> None:
    """Write `destination` with all tensors of `source` and these weights.

    Raises:
        ConversionError: `source` is damaged, truncated, or has one of the tensors already.
        OSError: a file cannot be read or written.
    """
    header, start = read_header(source)
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
        new.write(_encoded(header))
        old.seek(start)
        shutil.copyfileobj(old, new, _COPY_BYTES)
        for values in whole.values():
            new.write(values.tobytes())


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Header of a safetensors file, and where its tensors begin.

    Raises:
        ConversionError: the file is missing, or not a whole safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            text = file.read(length) if length <= _LARGEST_HEADER else b""
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        raise ConversionError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConversionError(f"{path} is damaged or incomplete; convert the target again") from error
    start = _LENGTH_BYTES + length
    expected, found = start + max(ends, default=0), path.stat().st_size
    if found != expected:
        raise ConversionError(
            f"{path} is damaged or incomplete: {found} bytes of {expected}; convert the target again"
        )
    return header, start


def _encoded(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # tensors start on a multiple of eight bytes
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
