"""The manifest of a compiled engine: what it was made from, what it can do, and whether it fits this program.

`engine.json` lies beside `model.onnx`. It is written last, so a directory without it is not an engine.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1
MANIFEST_NAME = "engine.json"
MODEL_NAME = "model.onnx"


class EngineError(RuntimeError):
    """A compiled engine is missing, damaged or does not fit."""


class EngineManifest(BaseModel):
    """Contents of `engine.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    source: str
    """Directory name of the model that was compiled."""
    source_sha256: str
    """Hash over the source's configuration, tokenizer and weights."""
    graph_sha256: str
    """Hash of model.onnx and its external data."""
    file_sizes: dict[str, int]
    """Bytes of each of the two, by name: checked on every load, where the hash would take seconds."""
    precision: Literal["int8", "fp32"]
    family: str
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    block_size: int
    max_sequence_length: int
    sliding_window: int | None
    """Shortest window of a layer; None if none is shorter than max_sequence_length."""
    end_ids: tuple[int, ...]
    versions: dict[str, str]


def load_manifest(directory: Path) -> EngineManifest:
    """Read `engine.json`.

    Raises:
        EngineError: no engine there, one of another format, or one with files that are missing or cut
            short; says what to run.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise EngineError(
            f"{directory} holds no compiled engine ({MANIFEST_NAME} is missing); run `drafthouse build`"
        )
    manifest = _parse(path)
    for name, size in manifest.file_sizes.items():
        file = directory / name
        if not file.is_file():
            raise EngineError(f"{file} is missing; run `drafthouse build` again")
        if (found := file.stat().st_size) != size:
            raise EngineError(
                f"{file} is damaged: {found} bytes instead of {size}; run `drafthouse build` again"
            )
    return manifest


def _parse(path: Path) -> EngineManifest:
    try:
        content = json.loads(path.read_bytes())
        found = content["format_version"]
        if found == FORMAT_VERSION:
            return EngineManifest.model_validate(content)
    except (ValueError, TypeError, KeyError):  # no JSON, no object, a field missing or wrong
        raise EngineError(f"{path} is damaged; run `drafthouse build` again") from None
    raise EngineError(
        f"{path} has format {found}, this release reads {FORMAT_VERSION}; run `drafthouse build` again"
    )


def check_fits(
    manifest: EngineManifest, directory: Path, *, precision: str, max_sequence_length: int
) -> None:
    """Raise EngineError if the engine cannot do what a deployment asks of it."""
    if manifest.precision != precision:
        raise EngineError(
            f"{directory} was compiled in {manifest.precision}, the spec asks for {precision}; "
            "run `drafthouse build`"
        )
    if manifest.max_sequence_length < max_sequence_length:
        raise EngineError(
            f"{directory} was compiled for {manifest.max_sequence_length} tokens, the spec asks for "
            f"{max_sequence_length}; run `drafthouse build`"
        )
