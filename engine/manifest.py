"""Manifests of compiled networks: what each was made from, what it can do, and whether it fits this program.

`engine.json` lies beside the graph of a target, `speculator.json` beside those of its speculator. It is written
last, so a directory without it is not a compiled network.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from deployments.engines import Precision
from deployments.errors import DrafthouseError
from deployments.places import ENGINE_FORMAT

FORMAT_VERSION = ENGINE_FORMAT
MANIFEST_NAME = "engine.json"
SPECULATOR_MANIFEST_NAME = "speculator.json"
MODEL_NAME = "model.onnx"


class EngineError(DrafthouseError, RuntimeError):
    """A compiled engine is missing, damaged or does not fit."""


class CompiledManifest(BaseModel):
    """What both manifests hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: int
    source: str
    """Directory name of what was compiled."""
    source_sha256: str
    """Hash over the source's configuration, tokenizer and weights."""
    graph_sha256: str
    """Hash of the graphs and their external data."""
    file_sizes: dict[str, int]
    """Bytes of each of these files, by name: checked on every load, where the hash would take seconds."""
    precision: Precision
    versions: dict[str, str]
    widths: tuple[int, ...]
    """Numbers of columns of what the matrices are multiplied with."""
    max_sequence_length: int | None = None
    """Most tokens of a request; None for networks without a KV cache."""


class EngineManifest(CompiledManifest):
    """Contents of `engine.json`."""

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


class SpeculatorManifest(CompiledManifest):
    """Contents of `speculator.json`."""

    method: str
    target: str
    """Directory name of the target that it was compiled with."""
    target_sha256: str
    """That target's `source_sha256`."""
    settings: dict[str, Any]
    """What of the spec decided the graphs (`deployments.places.graph_settings`), and the longest sequence."""
    graphs: tuple[str, ...]
    """File names of its graphs, in the order in which the method uses them."""
    candidates: int
    """Guesses that a row gives."""
    levels: int | None = None
    """Stages or heads, so the deepest tree; None if there is no such limit."""
    top_k: tuple[int, ...] | None = None
    """Guesses below a node, level by level, as the checkpoint publishes them."""
    hidden_layers: tuple[int, ...] = (-1,)
    """Hidden states of the target that it reads; see `engine.compiled_runner.CompiledRunner`."""
    mask_token: int | None = None
    """Token that stands for one that is not known yet, of a drafter that drafts in parallel."""


Manifest = TypeVar("Manifest", bound=CompiledManifest)


def load_manifest(directory: Path) -> EngineManifest:
    """Read `engine.json`.

    Raises:
        EngineError: no engine there, one of another format, or one with files that are missing or cut
            short; says what to run.
    """
    return _load(directory, MANIFEST_NAME, "engine", EngineManifest)


def load_speculator_manifest(directory: Path) -> SpeculatorManifest:
    """Read `speculator.json`.

    Raises:
        EngineError: as `load_manifest`.
    """
    return _load(directory, SPECULATOR_MANIFEST_NAME, "speculator", SpeculatorManifest)


def _load(directory: Path, name: str, kind: str, model: type[Manifest]) -> Manifest:
    path = directory / name
    if not path.is_file():
        raise EngineError(f"{directory} holds no compiled {kind} ({name} is missing); run `drafthouse build`")
    manifest = _parse(path, model)
    for file_name, size in manifest.file_sizes.items():
        file = directory / file_name
        if not file.is_file():
            raise EngineError(f"{file} is missing; run `drafthouse build` again")
        if (found := file.stat().st_size) != size:
            raise EngineError(
                f"{file} is damaged: {found} bytes instead of {size}; run `drafthouse build` again"
            )
    return manifest


def _parse(path: Path, model: type[Manifest]) -> Manifest:
    try:
        content = json.loads(path.read_bytes())
        found = content["format_version"]
        if found == FORMAT_VERSION:
            return model.model_validate(content)
    except (ValueError, TypeError, KeyError, RecursionError):  # no JSON, no object, a field missing or wrong
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


def check_belongs(
    manifest: SpeculatorManifest, directory: Path, *, method: str, target: EngineManifest
) -> None:
    """Raise EngineError if the speculator is of another method, or was compiled with another target."""
    if manifest.method != method:
        raise EngineError(
            f"{directory} is a speculator of method {manifest.method}, the spec asks for {method}; "
            "run `drafthouse build`"
        )
    if manifest.target_sha256 != target.source_sha256:
        raise EngineError(
            f"{directory} was compiled with the target {manifest.target} of hash "
            f"{manifest.target_sha256[:12]}, this one is {target.source} of hash "
            f"{target.source_sha256[:12]}; run `drafthouse build` with the checkpoint of this target"
        )
