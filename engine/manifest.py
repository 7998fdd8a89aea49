"""The manifest of a compiled engine: what it was made from, what it can do, and whether it fits this program.

`engine.json` lies beside `model.onnx`. It is written last, so a directory without it is not an engine.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

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
    """Hash over the source's config.json and weights."""
    graph_sha256: str
    """Hash of model.onnx and its external data."""
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
    end_ids: tuple[int, ...]
    versions: dict[str, str]


def load_manifest(directory: Path) -> EngineManifest:
    """Read `engine.json`.

    Raises:
        EngineError: no engine there, or one of another format; says what to run.
    """
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise EngineError(f"{directory} holds no compiled engine ({MANIFEST_NAME} is missing); run `drafthouse build`")
    try:
        manifest = EngineManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise EngineError(f"{path} is no manifest of this release ({error.error_count()} errors); rebuild it") from None
    if manifest.format_version != FORMAT_VERSION:
        raise EngineError(
            f"{path} has format {manifest.format_version}, this release reads {FORMAT_VERSION}; run `drafthouse build` again"
        )
    if not (directory / MODEL_NAME).is_file():
        raise EngineError(f"{directory / MODEL_NAME} is missing; run `drafthouse build` again")
    return manifest


def check_fits(manifest: EngineManifest, directory: Path, *, precision: str, max_sequence_length: int) -> None:
    """Raise EngineError if the engine cannot do what a deployment asks of it."""
    if manifest.precision != precision:
        raise EngineError(f"{directory} is a {manifest.precision} engine, the spec asks for {precision}; run `drafthouse build`")
    if manifest.max_sequence_length < max_sequence_length:
        raise EngineError(
            f"{directory} was compiled for {manifest.max_sequence_length} tokens, the spec asks for "
            f"{max_sequence_length}; run `drafthouse build`"
        )
