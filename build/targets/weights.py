"""Weights of a model in Hugging Face layout, read tensor by tensor as float32.

A checkpoint is one `model.safetensors`, or shards listed in `model.safetensors.index.json`. Nothing is read
before it is asked for, so a graph can be built while holding one tensor in memory. Names and shapes are
checked against the architecture before the first tensor is handed out: a weight that was never loaded must be
loud.

Example::

    weights = load_weights(Path("models/smollm2-135m"))
    weights["model.embed_tokens.weight"].shape      # (49152, 576)
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.storage import STORAGE_TYPES
from deployments.files.reading import read_json_object
from speculators.formats.errors import CheckpointError
from speculators.formats.shards import shard_files

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Old Llama checkpoints store the rotary table, which follows from the configuration.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"
_NAMES_SHOWN = 4


class Weights(Mapping[str, NDArray[np.float32]]):
    """Lazy tensors by Hugging Face name. Every access reads the file again and returns a new float32 array,
    exact for
    float32, float16 and bfloat16 storage."""

    def __init__(self, architecture: Architecture, files: Mapping[str, Any]) -> None:
        """`files`: the open safetensors file of every tensor of the architecture, by name."""
        self.architecture = architecture
        self._files = dict(files)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return np.asarray(self._files[name].get_tensor(name), dtype=np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def load_weights(directory: Path) -> Weights:
    """Open the weights of a model directory; exactly the tensors of `Architecture.parameter_shapes`.

    Raises:
        UnsupportedModelError: the model is of a kind that is not supported, or stores weights in another type
        than
            float32, float16 or bfloat16.
        TargetError: files are missing or damaged, or tensors are missing, unexpected or of another shape.
    """
    architecture = Architecture.from_directory(directory)
    files = _open_tensors(directory)
    shapes = architecture.parameter_shapes()
    _check_names(directory, set(shapes), files, architecture.tie_word_embeddings)
    for name, shape in shapes.items():
        _check_tensor(directory, name, shape, files[name])
    return Weights(architecture, {name: files[name] for name in shapes})


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, in order of name.

    Raises:
        TargetError: there are none, or the index is damaged or names a file that is missing or lies elsewhere.
    """
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if not (directory / INDEX_FILE).is_file():
        raise TargetError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_json_object(directory / INDEX_FILE, TargetError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise TargetError(
            f"{directory / INDEX_FILE}: weight_map is missing or empty; it maps tensors to files"
        )
    try:
        files = shard_files(directory / INDEX_FILE, weight_map.values())
    except CheckpointError as error:
        raise TargetError(str(error)) from None
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise TargetError(f"{directory}: {INDEX_FILE} names files that are missing: {_listed(missing)}")
    return files


def _open_tensors(directory: Path) -> dict[str, Any]:
    """The open file of every tensor stored in the directory."""
    tensors: dict[str, Any] = {}
    for path in weight_files(directory):
        try:
            opened = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise TargetError(
                f"{path} is damaged or incomplete ({error}); fetch or convert it again"
            ) from error
        tensors.update(dict.fromkeys(_tensor_names(opened), opened))
    return tensors


def _tensor_names(file: Any) -> list[str]:
    return list(file.keys())


def _check_names(directory: Path, expected: set[str], files: Mapping[str, Any], tied: bool) -> None:
    stored = {name for name in files if not name.endswith(_DERIVED_SUFFIX)}
    missing, unexpected = sorted(expected - stored), stored - expected
    if tied and _HEAD in unexpected and not missing:
        _check_tied(directory, files)
        unexpected.discard(_HEAD)
    if missing or unexpected:
        parts = [f"missing {_listed(missing)}"] if missing else []
        parts += [f"unexpected {_listed(sorted(unexpected))}"] if unexpected else []
        raise TargetError(f"{directory}: the tensors do not fit config.json: {'; '.join(parts)}")


def _check_tied(directory: Path, files: Mapping[str, Any]) -> None:
    """Some exporters store a tied head a second time; that is harmless only while it is the same matrix."""
    if not np.array_equal(files[_HEAD].get_tensor(_HEAD), files[_EMBEDDING].get_tensor(_EMBEDDING)):
        raise TargetError(
            f"{directory}: config.json ties the head to the embedding, but {_HEAD} differs from "
            f"{_EMBEDDING}; set tie_word_embeddings to false"
        )


def _check_tensor(directory: Path, name: str, shape: tuple[int, ...], file: Any) -> None:
    header = file.get_slice(name)
    found, kind = tuple(header.get_shape()), header.get_dtype()
    if found != shape:
        raise TargetError(f"{directory}: {name} has shape {list(found)}; config.json says {list(shape)}")
    if kind not in STORAGE_TYPES:
        raise UnsupportedModelError(
            f"{directory}: {name} is stored as {kind}; weights must be one of {', '.join(STORAGE_TYPES)}"
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more
