"""The header of a safetensors file, without its tensors.

The format is an eight-byte length, a JSON header with the type, shape and byte range of every tensor, and the tensors
(https://huggingface.co/docs/safetensors, "Format"). The `safetensors` package reads and writes what fits into memory,
in types that NumPy knows; the header serves where gigabytes are copied, or in other types (fp8, packed int4).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

METADATA = "__metadata__"
"""The one key of a header that is no tensor's."""
_LENGTH_BYTES = 8
_ALIGNMENT = 8  # tensors start on a multiple of it
_LARGEST = 100 * 2**20  # of the format


def read_header(path: Path, error: Callable[[str], Exception]) -> tuple[dict[str, dict[str, Any]], int]:
    """A file's header, `METADATA` included, and where its tensors begin; whether they are all there is not looked at.

    Raises:
        What `error` makes of a text: the file is missing, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > min(_LARGEST, size):
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        if not all(isinstance(entry, dict) for entry in header.values()):
            raise ValueError("its header does not describe tensors")
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError, AttributeError, RecursionError) as problem:
        raise error(f"{path} is no safetensors file, or damaged ({problem})") from problem
    return header, _LENGTH_BYTES + length


def read_whole_header(path: Path, error: Callable[[str], Exception]) -> tuple[dict[str, dict[str, Any]], int]:
    """The same of a file that has all its tensors; also an error where it has not."""
    header, start = read_header(path, error)
    try:
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != METADATA]
        expected = start + max(ends, default=0)
    except (KeyError, TypeError, IndexError) as problem:
        raise error(f"{path} is damaged: a tensor has no place ({problem!r})") from problem
    if (found := path.stat().st_size) != expected:
        raise error(f"{path} is damaged or incomplete: {found} bytes of {expected}")
    return header, start


def header_bytes(header: Mapping[str, Any]) -> bytes:
    """The beginning of a file with such a header."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
