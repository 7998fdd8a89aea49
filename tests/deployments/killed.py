"""Each way of the kit to write files, killed at every moment: `python -m tests.deployments.killed NAME OLD`.

A program of its own, since it divides for every moment, which is slow for a large one. Its last line is a list of what
was found, a JSON object a moment: `before` and `wanted`, `found` after the kill, `next` after another reader or writer
came by, `rest` of other names then.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deployments.files import directories
from deployments.files.directories import directory_beside, in_use, replace_directory, take_place
from deployments.files.writing import replace_file, write_json, write_text
from planner.bench.peers.environments import built_beside

MARK = "mark.json"
PARTS = ("config", "weights")
MIXTURE = "a mixture"
# Of files that are open; what else changes files is a function of the module `posix`.
_METHODS = ("write", "flush", "close")


@dataclass(frozen=True)
class Primitive:
    """A way to write, and what a reader finds: a version, `MIXTURE`, or None where nothing is."""

    write: Callable[[Path, str], None]
    read: Callable[[Path], str | None]


def _files(path: Path, version: str) -> None:
    for name in PARTS:
        (path / name).write_text(version)


def _replace_directory(path: Path, version: str) -> None:
    with replace_directory(path, MARK) as staging:
        (staging / MARK).write_text("{}")
        _files(staging, version)


def _take_place(path: Path, version: str) -> None:
    with directory_beside(path) as staging:
        _files(staging, version)
        take_place(staging, path)


def _built_beside(path: Path, version: str) -> None:
    with built_beside(path) as staging:
        _files(staging, version)


def _replace_file(path: Path, version: str) -> None:
    with replace_file(path) as beside, beside.open("wb") as file:
        for letter in version:
            file.write(letter.encode())
            file.flush()


def _read_text(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _read_directory(path: Path) -> str | None:
    if not path.exists():
        return None
    found = {(path / name).read_text() if (path / name).exists() else "" for name in PARTS}
    return found.pop() if len(found) == 1 else MIXTURE


def _read_in_use(path: Path) -> str | None:
    with in_use(path):
        return _read_directory(path)


PRIMITIVES = {
    "write_text": Primitive(write_text, _read_text),
    "write_json": Primitive(write_json, _read_text),
    "replace_file": Primitive(_replace_file, _read_text),
    "replace_directory": Primitive(_replace_directory, _read_directory),
    "take_place": Primitive(_take_place, _read_directory),
    "built_beside": Primitive(_built_beside, _read_directory),
    "in_two_renames": Primitive(_replace_directory, _read_in_use),
}


def ends_before(moment: int, write: Callable[[], None]) -> bool:
    """Write in a process that is killed before its n-th call of the system; whether it was through by then."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            if event == "c_call" and (argument.__module__ == "posix" or argument.__name__ in _METHODS):
                seen += 1
                if seen > moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            write()
        finally:
            sys.setprofile(None)
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFEXITED(status)


def moments(primitive: Primitive, old: str, folder: Path) -> list[dict[str, Any]]:
    """What is found after a kill at each moment, the last of which comes too late."""
    primitive.write(folder / "wanted", "new")
    wanted = primitive.read(folder / "wanted")
    found: list[dict[str, Any]] = []
    through = False
    while not through:
        path = folder / str(len(found)) / "it"
        path.parent.mkdir()
        if old:
            primitive.write(path, old)
        before = primitive.read(path)
        through = ends_before(len(found), partial(primitive.write, path, "new"))
        seen: dict[str, Any] = {"before": before, "wanted": wanted, "gap": not path.exists()}
        seen["found"] = primitive.read(path)
        primitive.write(path, "next")
        seen["next"] = primitive.read(path)
        seen["rest"] = [entry.name for entry in path.parent.iterdir() if entry != path]
        found.append(seen)
    return found


if __name__ == "__main__":
    name, old = sys.argv[1:]
    if name == "in_two_renames":
        directories._exchanged = lambda first, second: False
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(moments(PRIMITIVES[name], old, Path(place))))
