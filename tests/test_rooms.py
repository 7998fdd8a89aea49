"""Which room imports which: no import runs against the table, and no modules need each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import TESTS

ROOT = TESTS.parent
MAY_IMPORT = {
    "drafthouse": set[str](),
    "deployments": set[str](),
    "client": set[str](),
    "deploy": set[str](),
    "speculators": {"deployments"},
    "engine": {"speculators", "deployments"},
    "model_repo": {"engine", "drafthouse"},
    "planner": {"speculators", "engine", "deployments"},
    "build": {"speculators", "engine", "planner", "deployments", "drafthouse"},
    "loadtest": {"client", "deployments"},
}
ANYTHING = {"cli", "tests"}

Imports = Mapping[str, set[str]]


def imports(root: Path) -> Imports:
    """Modules by name, each with those of the same tree that it imports anywhere, for types and in functions too."""
    files = {
        _name(path.relative_to(root)): path for room in _rooms(root) for path in (root / room).rglob("*.py")
    }
    return {
        name: {found for each in _imported(path) if (found := _nearest(each, files)) and found != name}
        for name, path in files.items()
    }


def against_the_table(found: Imports) -> list[str]:
    """Imports that a room may not have."""
    return [
        f"{name} imports {other}"
        for name, others in found.items()
        if (room := name.partition(".")[0]) not in ANYTHING
        for other in others
        if (theirs := other.partition(".")[0]) != room and theirs not in MAY_IMPORT[room]
    ]


def circle(found: Imports) -> list[str]:
    """Modules that import each other in turn; empty if there are none."""
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def kit() -> Imports:
    return imports(ROOT)


def test_no_import_runs_against_the_table(kit: Imports) -> None:
    assert set(_rooms(ROOT)) == set(MAY_IMPORT) | ANYTHING
    assert against_the_table(kit) == []


def test_no_modules_import_each_other(kit: Imports) -> None:
    assert circle(kit) == []


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """In functions, for types and by the name of a package, too."""
    for file, text in {
        "engine/__init__.py": "",
        "engine/steps.py": "def run() -> None:\n    from engine import cache",
        "engine/cache.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import engine.steps",
        "client/__init__.py": "from deployments.spec import load_spec\nimport json",
        "deployments/__init__.py": "",
        "deployments/spec.py": "",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    found = imports(tmp_path)
    assert against_the_table(found) == ["client imports deployments.spec"]
    assert set(circle(found)) == {"engine.steps", "engine.cache"}
    assert circle({**found, "engine.cache": set()}) == []


def _rooms(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if any(path.glob("*.py")))


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nearest(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a dotted name lies in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None
