"""Where a trained checkpoint comes from: `training.json` beside its weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deployments.files.writing import write_json
from speculators.data.samples import Sample, content_hash

PROVENANCE_FILE = "training.json"

_PACKAGES = ("torch", "accelerate", "transformers", "safetensors", "numpy")
_IDENTITY = ("config.json", "tokenizer.json")
_DRAFTER = ("config.json", "*.safetensors", "*.bin", "*.pt")
_BLOCK = 1 << 20


def target_hash(directory: Path) -> str:
    """SHA-256 over configuration, tokenizer and weights of a model in Hugging Face layout; remembered."""
    paths = sorted((*(directory / name for name in _IDENTITY), *directory.glob("*.safetensors")))
    return _hash(tuple((path, *_stamp(path)) for path in paths))


def checkpoint_hash(directory: Path) -> str:
    """SHA-256 over configuration, weights and vocabulary of a drafter, whatever else lies beside them; remembered."""
    paths = sorted({path for pattern in _DRAFTER for path in directory.glob(pattern)})
    return _hash(tuple((path, *_stamp(path)) for path in paths))


def _stamp(path: Path) -> tuple[int, int, int]:
    """Another one for other content."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4)
def _hash(files: tuple[tuple[Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def describe_data(samples: Sequence[Sample], held_out: Sequence[Sample]) -> dict[str, Any]:
    """Sizes, categories and content hash of the data."""
    categories: dict[str, int] = {}
    for sample in samples:
        categories[sample.category] = categories.get(sample.category, 0) + sample.num_written
    return {
        "samples": len(samples),
        "tokens": sum(len(sample.tokens) for sample in samples),
        "response_tokens": sum(sample.num_written for sample in samples),
        "response_tokens_by_category": dict(sorted(categories.items())),
        "held_out_samples": len(held_out),
        "sha256": content_hash(samples),
    }


def write_provenance(directory: Path, content: Mapping[str, Any]) -> None:
    """Write `training.json`, with the versions and the machine added.

    Raises:
        OSError: the directory cannot be written.
    """
    versions = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    whole = {**content, "versions": versions, "machine": platform.processor() or platform.machine()}
    write_json(directory / PROVENANCE_FILE, whole)
