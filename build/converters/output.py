"""The directory that a conversion writes: whole or not at all, and only over what a conversion wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from build.converters.errors import ConversionError
from build.targets.errors import TargetError
from build.targets.files import require_space, writing_errors
from deployments.files.directories import replace_directory

PROVENANCE_FILE = "drafthouse_conversion.json"


@dataclass(frozen=True)
class Conversion:
    """A finished conversion.

    Attributes:
        directory: what was written.
        layout: `checkpoint` or `source`.
        notes: what the commands that follow have to know.
    """

    directory: Path
    layout: str
    notes: tuple[str, ...] = ()


@contextmanager
def new_directory(
    output: Path, sources: list[Path], num_bytes: int, provenance: dict[str, Any]
) -> Iterator[Path]:
    """Give a directory beside `output` that takes its name when the block ends without an error.

    Args:
        output: new, empty, or the result of an earlier conversion, which is replaced.
        sources: directories that are read.
        num_bytes: about what will be written.
        provenance: from what it was made, for the file that marks it.

    Raises:
        ConversionError: `output` holds something else or is a source, the disk is full or not writable.
    """
    _check_replaceable(output, sources)
    try:
        with writing_errors(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            require_space(output.parent, num_bytes)
            with replace_directory(output, PROVENANCE_FILE) as partial:
                yield partial
                packages = {name: version(name) for name in ("numpy", "safetensors")}
                content = {**provenance, "sources": [str(path) for path in sources], "packages": packages}
                (partial / PROVENANCE_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except TargetError as error:
        raise ConversionError(str(error)) from error


def directory_bytes(directory: Path) -> int:
    """Bytes of the files that lie in a directory itself."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.is_file())


def _check_replaceable(output: Path, sources: list[Path]) -> None:
    if output.resolve() in {source.resolve() for source in sources}:
        raise ConversionError(f"{output} is what is read; choose another output directory")
    if not output.exists():
        return
    if not output.is_dir():
        raise ConversionError(f"{output} is a file; choose another output directory")
    if any(output.iterdir()) and not (output / PROVENANCE_FILE).is_file():
        raise ConversionError(
            f"{output} holds something that no conversion wrote; choose another directory, or empty it"
        )
