"""Compiles a target in Hugging Face layout into an engine directory.

The directory holds `model.onnx` with its weights as external data, the tokenizer's files, and the manifest
(`engine.manifest`). It is assembled beside its destination and renamed, so it is complete or absent, also
when two processes compile the same engine.

Example::

    directory = Path("runs/engines/smollm2-135m-int8")
    compile_engine(Path("models/smollm2-135m"), directory, precision="int8", max_sequence_length=2048)
"""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import openvino as ov

from build.graph.target import build_target_graph
from build.targets.architecture import Architecture
from build.targets.files import writing_errors
from build.targets.weights import load_weights
from deployments.engines import Precision
from deployments.files.directories import replace_directory
from deployments.files.hashes import content_hash, read_sha256
from engine.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    MODEL_NAME,
    EngineError,
    EngineManifest,
    load_manifest,
)
from engine.runner import BLOCK_SIZE
from speculators.formats.draft_vocabulary import read_draft_vocabulary

_WEIGHTS_NAME = "model.onnx.data"
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    "chat_template.jinja",
)


def compile_engine(
    source: Path,
    directory: Path,
    *,
    precision: Precision,
    max_sequence_length: int,
    vocab_size: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> EngineManifest:
    """Compile, or find that the engine in `directory` is already the wanted one.

    Args:
        source: model in Hugging Face layout; a draft model may have a draft vocabulary beside its weights.
        directory: where the engine is put; a different engine there is replaced.
        precision: "int4" (layers; the rest is int8), "int8" or "fp32".
        max_sequence_length: most tokens of prompt and output.
        vocab_size: of a draft model's target, which may be padded otherwise; None: the model's own.
        report: gets a line for each stage.

    Raises:
        TargetError: the source cannot be read, or `directory` cannot be written.
        EngineError: the source is shorter-sighted than `max_sequence_length`.
    """
    architecture = Architecture.from_directory(source)
    if max_sequence_length > architecture.max_position_embeddings:
        raise EngineError(
            f"{source} knows {architecture.max_position_embeddings} positions; "
            f"engine.max_sequence_length {max_sequence_length} is beyond that"
        )
    digest = content_hash(source)
    vocab_size = vocab_size or architecture.vocab_size
    existing = _existing(directory, (digest, precision, max_sequence_length, vocab_size))
    if existing is not None:
        report(f"{directory}: up to date")
        return existing
    report(f"{source}: reading weights")
    weights = load_weights(source)
    report(f"building the {precision} graph")
    graph = build_target_graph(
        architecture,
        weights,
        precision=precision,
        max_positions=max_sequence_length,
        block_size=BLOCK_SIZE,
        drafted=read_draft_vocabulary(source, architecture.vocab_size),
        vocab_size=vocab_size,
    )
    report(f"writing {directory}")
    with writing_errors(directory), replace_directory(directory, MANIFEST_NAME) as staging:
        onnx.save_model(graph, str(staging / MODEL_NAME), save_as_external_data=True, location=_WEIGHTS_NAME)
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy2(source / name, staging / name)
        graph_files = (staging / MODEL_NAME, staging / _WEIGHTS_NAME)
        manifest = EngineManifest(
            format_version=FORMAT_VERSION,
            source=source.name,
            source_sha256=digest,
            graph_sha256=read_sha256(*graph_files),
            file_sizes={path.name: path.stat().st_size for path in graph_files},
            precision=precision,
            max_sequence_length=max_sequence_length,
            **_facts(architecture, max_sequence_length),
            vocab_size=vocab_size,
            versions={
                "openvino": ov.get_version(),
                "onnx": onnx.__version__,
                "drafthouse": version("drafthouse"),
            },
        )
        (staging / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def _facts(architecture: Architecture, max_sequence_length: int) -> dict[str, Any]:
    """What the manifest repeats of the architecture."""
    window = architecture.sliding_window
    return {
        "family": architecture.family,
        "num_layers": architecture.num_layers,
        "num_kv_heads": architecture.num_kv_heads,
        "head_dim": architecture.head_dim,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "widths": (architecture.hidden_size, architecture.intermediate_size),
        "block_size": BLOCK_SIZE,
        "sliding_window": window if window is not None and window < max_sequence_length else None,
        "end_ids": architecture.eos_token_ids,
    }


def _existing(directory: Path, wanted: tuple[str, str, int, int]) -> EngineManifest | None:
    """Manifest of the engine in `directory` if it is intact and of this source hash, precision, length, vocabulary."""
    try:
        found = load_manifest(directory)
    except EngineError:
        return None
    if (found.source_sha256, found.precision, found.max_sequence_length, found.vocab_size) != wanted:
        return None
    intact = read_sha256(directory / MODEL_NAME, directory / _WEIGHTS_NAME) == found.graph_sha256
    return found if intact else None
