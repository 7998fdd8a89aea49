"""Models from somebody else: files that announce more than they hold, or nest without end, are refused at once."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from build.targets.errors import TargetError
from build.targets.gguf_file import GgufFile
from client import ChatTemplate
from client.errors import InvalidRequest
from deployments.files.reading import read_json_object
from deployments.files.safetensors import read_header
from speculators.formats.errors import CheckpointError

DEEP = "[" * 200_000
_STRING, _ARRAY, _UINT8 = 8, 9, 0


def _gguf(*, tensors: int = 0, keys: int = 1, value: bytes = b"") -> bytes:
    key = b"a.b"
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + struct.pack("<Q", len(key)) + key + value


def _array(kind: int, length: int, rest: bytes = b"") -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, length) + rest


HOSTILE_GGUF = {
    "an array of 10^12 bytes": _gguf(value=_array(_UINT8, 10**12)),
    "an array of 2^64 - 1 strings": _gguf(value=_array(_STRING, 2**64 - 1)),
    "arrays in arrays": _gguf(value=struct.pack("<I", _ARRAY) + struct.pack("<IQ", _ARRAY, 1) * 5000),
    "more entries than a model has": _gguf(value=_array(_UINT8, 2**24, bytes(2**24))),
    "a string of 2^63 bytes": _gguf(value=struct.pack("<IQ", _STRING, 2**63)),
    "10^12 keys": _gguf(keys=10**12, value=struct.pack("<IB", _UINT8, 0)),
    "10^12 tensors": _gguf(tensors=10**12, value=struct.pack("<IB", _UINT8, 0)),
    "a tensor of 2^32 - 1 dimensions": _gguf(tensors=1, value=struct.pack("<IB", _UINT8, 0))
    + struct.pack("<Q", 1)
    + b"t"
    + struct.pack("<I", 2**32 - 1),
    "an unknown type": _gguf(value=struct.pack("<I", 77)),
}


@pytest.mark.parametrize("content", HOSTILE_GGUF.values(), ids=HOSTILE_GGUF.keys())
def test_a_gguf_file_is_held_to_its_size(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=r"hostile\.gguf is not a complete GGUF file"):
        GgufFile(path)


def _safetensors(path: Path) -> Any:
    path.write_bytes(struct.pack("<Q", len(DEEP)) + DEEP.encode())
    return read_header(path, TargetError)


READERS: dict[str, tuple[Callable[[Path], Any], type[Exception]]] = {
    "config.json": (partial(read_json_object, error=CheckpointError), CheckpointError),
    "tokenizer_config.json": (lambda path: ChatTemplate.from_directory(path.parent), InvalidRequest),
    "a header of safetensors": (_safetensors, TargetError),
}


@pytest.mark.parametrize(("read", "refusal"), READERS.values(), ids=READERS.keys())
def test_json_that_nests_without_end_is_refused(
    read: Callable[[Path], Any], refusal: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(DEEP)
    with pytest.raises(refusal, match=r"tokenizer_config\.json"):
        read(path)
