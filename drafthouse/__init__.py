"""The kit's rooms under one name, where it runs among other people's packages.

In the repository the rooms are imported by their own names, from its root. Packages of others are called the same:
`build` of PyPI, `speculators` of vLLM's project. So in a process that is somebody else's (Triton's with a model of the
kit, vLLM's with its plugin, TensorRT-LLM's with its drafter) the rooms are `drafthouse.engine`,
`drafthouse.speculators` and so on, and only `drafthouse` is on the path. What a module says within a room stays as it
is: `from speculators.anpd import NgramTable` means the kit's own there, and elsewhere what is installed as that.

An import statement asks its module's builtins for `__import__`; modules that are loaded below this package get builtins
whose `__import__` looks for rooms here first.

Example::

    from drafthouse.engine.vllm.proposer import AnpdProposer  # and `import speculators` is still vLLM's
"""

import builtins
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

ROOMS = frozenset(
    (
        "build",
        "cli",
        "client",
        "deploy",
        "deployments",
        "engine",
        "loadtest",
        "model_repo",
        "planner",
        "speculators",
    )
)
"""By name, since packages of others lie beside them where the kit is installed."""

_OWN = Path(__file__).resolve().parent
# What is made for others has the rooms in this folder; in the repository it lies beside them.
_HOME = _OWN if any(_OWN.glob("*/__init__.py")) else _OWN.parent
__path__ = [str(_HOME)]
_ROOMS = frozenset(room for room in ROOMS if (_HOME / room / "__init__.py").is_file())


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`builtins.__import__`, to which the rooms' names mean those in this package."""
    room = name.partition(".")[0]
    if level or room not in _ROOMS:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    found = builtins.__import__(f"{__name__}.{name}", globals, locals, fromlist or (), 0)
    return found if fromlist else sys.modules[f"{__name__}.{room}"]


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds what lies below this package where Python would, and has it loaded with the names above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


sys.meta_path.insert(0, _Finder())
