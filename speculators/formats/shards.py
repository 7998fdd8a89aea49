"""What an index of shards and a model directory may name: files that lie in that directory, and nothing else.

Both come from elsewhere, so a name that leads out of the directory is refused, whatever it points to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from speculators.formats.errors import CheckpointError

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def shard_files(index: Path, names: Iterable[object]) -> list[Path]:
    """The shards of an index, each once, in order of name.

    Args:
        index: the index file.
        names: the values of its weight map.

    Raises:
        CheckpointError: a name is none of a file of weights beside the index.
    """
    plain = set()
    for name in names:
        if not (isinstance(name, str) and _is_plain(name)):
            raise CheckpointError(
                f"{index}: {name!r} is no name of a shard; weight_map must name files of weights beside the index, "
                "such as model-00001-of-00002.safetensors"
            )
        plain.add(name)
    return [index.parent / name for name in sorted(plain)]


def check_inside(directory: Path, paths: Iterable[Path]) -> None:
    """Refuse files of a model directory that are symbolic links to somewhere else.

    In the cache of Hugging Face's hub, `snapshots/REVISION/` consists of links into the `blobs` beside `snapshots`;
    those are part of the model.

    Raises:
        CheckpointError: names the link and where it leads.
    """
    root = Path(os.path.realpath(directory))
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else None
    for path in paths:
        real = Path(os.path.realpath(path))
        if root not in real.parents and real.parent != blobs:
            raise CheckpointError(
                f"{path} is a link out of its directory, to {real}, and is not followed; put a copy of the file there"
            )


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name.isprintable() and name.endswith(_SUFFIXES)
