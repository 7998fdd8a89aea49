"""Compiles the speculator of a deployment beside its target.

A trained speculator becomes one or more ONNX graphs and a manifest (`engine.manifest.SpeculatorManifest`) that names
the checkpoint and the target it was compiled with, and so does the target itself where it drafts in four bits; a draft
model becomes an engine like any target. Methods without weights have nothing to compile, but for texts that suffix
decoding searches, which become tokens. As with targets, what is up to date is left alone, and what is written is
complete or absent.

Example::

    directory = Path("runs/engines/smollm2-135m-int8-medusa")
    compile_speculator(
        spec.speculation, directory, target=Path("models/smollm2-135m"), precision="int8", max_sequence_length=2048
    )
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov

from build.compile import compile_engine
from build.draft_graphs import DraftGraphs, plan_graphs, trained_section
from build.low_bit import plan_copy
from build.own_texts import own_texts
from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from build.targets.files import writing_errors
from build.vocabulary import is_padding
from deployments.engines import Precision
from deployments.files.directories import replace_directory
from deployments.files.hashes import content_hash, read_sha256
from deployments.places import graph_settings, source_hash
from deployments.speculation import AnySpeculation, DraftModel, LowBit, SuffixAutomaton
from engine.manifest import (
    FORMAT_VERSION,
    SPECULATOR_MANIFEST_NAME,
    EngineError,
    SpeculatorManifest,
    load_speculator_manifest,
)
from engine.methods import EMBEDDED_SETTINGS, Trained
from engine.serving.tokenizer_files import vocabulary
from speculators.draft_model.checkpoint import complete_draft
from speculators.formats.draft_vocabulary import VOCABULARY_FILE

_TOKENIZER = "tokenizer.json"
_TEXTS = "texts.npy"


@dataclass(frozen=True)
class _Wanted:
    """What is compiled beside which target, and into which directory; see `compile_speculator`."""

    directory: Path
    target: Path
    precision: Precision
    max_sequence_length: int
    report: Callable[[str], None]


def compile_speculator(
    speculation: AnySpeculation,
    directory: Path,
    *,
    target: Path,
    precision: Precision,
    max_sequence_length: int,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Compile, or find that `directory` already holds what is wanted.

    Args:
        speculation: the spec's section.
        directory: where the graphs are put; others there are replaced. Not touched for methods without weights, unless
            they have texts.
        target: the target in Hugging Face layout.
        precision: "int8" or "fp32"; of low-bit self-drafting "int4".
        max_sequence_length: most tokens of prompt and output.
        report: gets a line for each stage.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, or that of another target.
        TargetError: the target or the draft model cannot be read or have different tokenizers, or `directory` cannot
            be written.
        EngineError: the draft model is shorter-sighted than `max_sequence_length`, the section's tree is none or its
            rank too great, or the embedded engine does not run the method.
    """
    trained = trained_section(speculation)
    wanted = _Wanted(directory, target, precision, max_sequence_length, report)
    if isinstance(speculation, DraftModel):
        _compile_draft(speculation.model, wanted)
    elif trained is not None:
        _compile_graphs(trained, trained.checkpoint, wanted)
    elif isinstance(speculation, SuffixAutomaton) and speculation.texts is not None:
        _compile_texts(speculation, speculation.texts, wanted)
    elif isinstance(speculation, LowBit):
        _compile_graphs(speculation, target, wanted)
    elif speculation.method not in EMBEDDED_SETTINGS:
        raise EngineError(
            f"speculation.method {speculation.method} runs on TensorRT-LLM, not on the embedded engine"
        )


def _compile_draft(draft: Path, wanted: _Wanted) -> None:
    with completed_draft(draft, wanted.target) as source:
        compile_engine(
            source,
            wanted.directory,
            precision=wanted.precision,
            max_sequence_length=wanted.max_sequence_length,
            vocab_size=check_draft(source, wanted.target),
            report=wanted.report,
        )


@contextmanager
def completed_draft(draft: Path, target: Path) -> Iterator[Path]:
    """The draft model as a model of its own: one that was distilled by this kit gets what it shares with its target.

    Raises:
        CheckpointError: a file is damaged, or the draft was cut out of another model.
    """
    if not (draft / VOCABULARY_FILE).is_file():
        yield draft
        return
    with tempfile.TemporaryDirectory(prefix="drafthouse-") as scratch:
        whole = Path(scratch) / draft.name
        whole.mkdir()
        complete_draft(draft, target, whole)
        shutil.copyfile(draft / VOCABULARY_FILE, whole / VOCABULARY_FILE)
        yield whole


def check_draft(draft: Path, target: Path) -> int:
    """The size of the target's vocabulary, which the draft model must have, too, padding aside.

    Raises:
        TargetError: the two have different tokenizers, or one of them lacks tokens of it; a file is missing.
    """
    check_same_tokenizer(draft, target)
    ours, theirs = (Architecture.from_directory(model).vocab_size for model in (draft, target))
    if ours != theirs and not is_padding(target, ours, theirs):
        raise TargetError(
            f"{draft} has {ours} tokens, {target} has {theirs}, and their tokenizer has tokens that only one of them "
            "has; a draft model must have all of the tokenizer's"
        )
    return theirs


def check_same_tokenizer(draft: Path, target: Path) -> None:
    """Both models must give every token the same id.

    Raises:
        TargetError: they do not, or a `tokenizer.json` is missing.
    """
    ours, theirs = (_vocabulary(model) for model in (draft, target))
    if ours == theirs:
        return
    token = min(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    raise TargetError(
        f"{draft} and {target} have different tokenizers: {token!r} has the id {ours.get(token)} in the draft model "
        f"and {theirs.get(token)} in the target; a draft model must have the target's tokenizer"
    )


def _vocabulary(model: Path) -> Mapping[str, int]:
    if not (model / _TOKENIZER).is_file():
        raise TargetError(
            f"{model / _TOKENIZER} is missing; it tells whether draft and target have the same tokens"
        )
    try:
        return vocabulary(model / _TOKENIZER)
    except ValueError as error:
        raise TargetError(f"{model}: {error}") from error


def _compile_graphs(speculation: Trained | LowBit, source: Path, wanted: _Wanted) -> None:
    origin = {
        "method": speculation.method,
        "source_sha256": content_hash(source),
        "target_sha256": content_hash(wanted.target),
        "precision": wanted.precision,
        "settings": {"max_sequence_length": wanted.max_sequence_length, **graph_settings(speculation)},
    }
    if _up_to_date(wanted, origin):
        return
    wanted.report(f"{source}: reading")
    planned = _planned(speculation, wanted)
    wanted.report(f"writing {wanted.directory}")
    facts = {**origin, **planned.facts, "graphs": planned.order}
    _write(wanted, source, facts, lambda staging: _write_graphs(planned, staging))


def _compile_texts(speculation: SuffixAutomaton, texts: Path, wanted: _Wanted) -> None:
    if not texts.is_file():
        raise TargetError(f"{texts} is no file")
    origin = {
        "method": speculation.method,
        "source_sha256": source_hash(texts),
        "target_sha256": content_hash(wanted.target),
    }
    if _up_to_date(wanted, origin):
        return
    wanted.report(f"{texts}: reading")
    tokens = own_texts(texts, wanted.target)
    megabytes = 16 * len(tokens) / 1e6
    wanted.report(
        f"writing {wanted.directory}: {len(tokens):,} tokens, {megabytes:,.0f} MB when they are searched"
    )
    # Of what a manifest says of graphs there is nothing to say.
    facts = {
        **origin,
        "precision": wanted.precision,
        "settings": {},
        "widths": (),
        "candidates": 1,
        "graphs": [_TEXTS],
    }

    def write(staging: Path) -> list[Path]:
        np.save(staging / _TEXTS, tokens)
        return [staging / _TEXTS]

    _write(wanted, texts, facts, write)


def _write(
    wanted: _Wanted, source: Path, facts: Mapping[str, Any], write: Callable[[Path], list[Path]]
) -> None:
    """Put what `write` writes into its place, with a manifest that says `facts` of it."""
    directory = wanted.directory
    with writing_errors(directory), replace_directory(directory, SPECULATOR_MANIFEST_NAME) as staging:
        files = write(staging)
        manifest = SpeculatorManifest.model_validate(
            {
                **facts,
                "format_version": FORMAT_VERSION,
                "source": source.name,
                "target": wanted.target.name,
                "graph_sha256": read_sha256(*files),
                "file_sizes": {file.name: file.stat().st_size for file in files},
                "versions": {
                    "openvino": ov.get_version(),
                    "onnx": onnx.__version__,
                    "drafthouse": version("drafthouse"),
                },
            }
        )
        (staging / SPECULATOR_MANIFEST_NAME).write_text(
            manifest.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )


def _planned(speculation: Trained | LowBit, wanted: _Wanted) -> DraftGraphs:
    precision, length = wanted.precision, wanted.max_sequence_length
    if isinstance(speculation, LowBit):
        return plan_copy(speculation, wanted.target, precision=precision, max_sequence_length=length)
    return plan_graphs(speculation, wanted.target, precision=precision, max_sequence_length=length)


def _write_graphs(planned: DraftGraphs, directory: Path) -> list[Path]:
    files = []
    for name, graph in planned.build().items():
        onnx.save_model(graph, str(directory / name), save_as_external_data=True, location=f"{name}.data")
        files += [path for path in (directory / name, directory / f"{name}.data") if path.is_file()]
    return files


def _up_to_date(wanted: _Wanted, origin: Mapping[str, Any]) -> bool:
    """Whether the directory holds what was made of this; then it is reported."""
    directory = wanted.directory
    try:
        found = load_speculator_manifest(directory)
    except EngineError:
        return False
    if any(getattr(found, name) != value for name, value in origin.items()):
        return False
    if read_sha256(*(directory / name for name in found.file_sizes)) != found.graph_sha256:
        return False
    wanted.report(f"{directory}: up to date")
    return True
