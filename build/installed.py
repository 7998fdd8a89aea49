"""Packages of other people's that are installed on this machine: beside this interpreter, or beside another one.

NVIDIA's images keep theirs with the `python3` that comes first on PATH, which need not be the kit's interpreter.
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ASK = """
import importlib.metadata as m, sys
for name in sys.argv[1:]:
    try:
        found = m.distribution(name)
    except m.PackageNotFoundError:
        continue
    print(found.version); print(found.locate_file("")); break
"""
_SECONDS = 30


@dataclass(frozen=True)
class InstalledPackage:
    """A package, and who can import it.

    Attributes:
        version: as it says.
        root: directory that holds it.
        python: interpreter that it is beside.
    """

    version: str
    root: Path
    python: Path

    def fields(self, path: str, name: str) -> frozenset[str]:
        """Fields of a class in one of its files; empty if there is no such class.

        The file is read, not imported: that takes a minute with packages such as these, and opens the GPUs.
        """
        return frozenset(_annotated(self.tree(path), name))

    def tree(self, path: str) -> ast.Module:
        """What is written in one of its files; nothing where it cannot be read."""
        try:
            return ast.parse((self.root / path).read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            return ast.Module([], [])


def beside_this_interpreter(*names: str) -> InstalledPackage | None:
    """The first of these distributions that this interpreter can import."""
    for name in names:
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return InstalledPackage(found.version, Path(str(found.locate_file(""))), Path(sys.executable))
    return None


def beside_the_path_s(*names: str) -> InstalledPackage | None:
    """The same of the `python3` of PATH, if that is another interpreter."""
    other = shutil.which("python3")
    return None if other is None or _same(other, sys.executable) else beside(Path(other), *names)


@functools.cache
def beside(python: Path, *names: str) -> InstalledPackage | None:
    """The same of another interpreter; it stays what it is for as long as this process runs."""
    try:
        # Not with our variables: a PYTHONPATH for this interpreter says nothing of that one's packages.
        answer = subprocess.run(
            [python, "-I", "-c", _ASK, *names], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines()
    if answer.returncode != 0 or len(lines) < 2:
        return None
    return InstalledPackage(lines[-2], Path(lines[-1]), python)


def _same(one: str, other: str) -> bool:
    """Whether two interpreters belong to one environment; links to the same program may not."""
    return Path(one).parent == Path(other).parent


def _annotated(tree: ast.Module, name: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id
