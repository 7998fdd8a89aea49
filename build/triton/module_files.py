"""Copies the kit's modules that a Triton model imports beside its `model.py`.

So such a repository needs neither an installed kit nor a PYTHONPATH, which NVIDIA's containers and a bucket of models
do not have. The modules lie in the package `drafthouse`, since containers have others' `speculators` and the like. What
else a model imports must be in those containers already; `outside_imports` says what that is.

Example::

    write_model(staging, config, python_files("model_repo/preprocessing/model.py"))
"""

import ast
import functools
import sys
from pathlib import Path

from build.triton.model_config import ROOT
from drafthouse import ROOMS

PACKAGE = "drafthouse"
"""What the rooms are called together, for processes that are somebody else's."""
_MODEL = '''\
"""Triton's entry to the kit's model, which lies beside this file with all that it imports of the kit."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from {module} import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''
_OURS = ROOMS | {PACKAGE}


def python_files(entry: str, *others: str) -> dict[str, Path | str]:
    """A Python model's files: `model.py`, and what it is an entry to, by their path in the version's folder.

    Args:
        entry: the file in the kit that has `TritonPythonModel`.
        others: files of the kit that somebody imports by name, in processes that the model starts.
    """
    module = ".".join((PACKAGE, *Path(entry).with_suffix("").parts))
    carried = {name: ROOT / name for name in (entry, *others)} | module_files(entry, *others)
    package = {f"{PACKAGE}/__init__.py": ROOT / PACKAGE / "__init__.py"}
    return {
        "model.py": _MODEL.format(module=module),
        **package,
        **{f"{PACKAGE}/{name}": path for name, path in sorted(carried.items())},
    }


def module_files(*entries: str) -> dict[str, Path]:
    """Files of the kit that these files import, directly or through each other, by their path in the kit."""
    found: set[Path] = set()
    waiting = [path for entry in entries for path in _imported_files(ROOT / entry)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported_files(path)
    return dict(sorted((path.relative_to(ROOT).as_posix(), path) for path in found))


def outside_imports(*entries: str) -> set[str]:
    """Packages that are neither the kit's nor of the standard library and that these files need."""
    files = [ROOT / entry for entry in entries] + list(module_files(*entries).values())
    names = {name.split(".")[0] for path in files for name in _imported_names(path)}
    return names - _OURS - sys.stdlib_module_names


@functools.cache
def _imported_files(path: Path) -> frozenset[Path]:
    files: set[Path] = set()
    for name in _imported_names(path):
        parts = name.split(".")
        if parts[0] not in _OURS:
            continue
        for length in range(1, len(parts) + 1):
            package = ROOT.joinpath(*parts[:length], "__init__.py")
            module = ROOT.joinpath(*parts[: length - 1], f"{parts[length - 1]}.py")
            files |= {candidate for candidate in (package, module) if candidate.is_file()}
    return frozenset(files)


@functools.cache
def _imported_names(path: Path) -> tuple[str, ...]:
    """Dotted names of a file's imports; of `from a import b` both `a` and `a.b`, which may be a module."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
