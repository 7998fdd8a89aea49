"""The TensorRT-LLM of this machine, if there is one: inside NVIDIA's containers, or installed by hand.

NVIDIA's images keep it in an environment of their own, whose `python3` comes first on PATH. The kit's interpreter may
be another one, so where it has no TensorRT-LLM that `python3` is asked.
"""

import ast
import functools
import importlib.metadata
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = "tensorrt_llm"
_ASK = f"import importlib.metadata as m; d = m.distribution('{_PACKAGE}'); print(d.version); print(d.locate_file(''))"
_ARGUMENTS = "tensorrt_llm/llmapi/llm_args.py"
_SECONDS = 30


@dataclass(frozen=True)
class InstalledRelease:
    """A TensorRT-LLM that is installed here.

    Attributes:
        version: as its package says.
        root: directory that holds its package.
    """

    version: str
    root: Path

    def fields(self, name: str) -> frozenset[str]:
        """Fields of a class of its LLM API (`tensorrt_llm/llmapi/llm_args.py`); empty if there is no such class.

        The file is read, not imported: importing TensorRT-LLM takes a minute and opens the GPUs.
        """
        try:
            tree = ast.parse((self.root / _ARGUMENTS).read_text(encoding="utf-8"))
        except (OSError, ValueError, SyntaxError):
            return frozenset()
        return frozenset(_annotated(tree, name))


def installed_release() -> InstalledRelease | None:
    """The release beside this interpreter or, failing that, beside the `python3` of PATH."""
    try:
        found = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        other = shutil.which("python3")
        return None if other is None or _same(other, sys.executable) else _asked(other)
    return InstalledRelease(found.version, Path(str(found.locate_file(""))))


def installed_version() -> str | None:
    """The installed release's version, or None."""
    release = installed_release()
    return None if release is None else release.version


def _same(one: str, other: str) -> bool:
    """Whether two interpreters belong to one environment; links to the same program may not."""
    return Path(one).parent == Path(other).parent


@functools.cache
def _asked(python: str) -> InstalledRelease | None:
    """What another interpreter has; it stays what it is for as long as this process runs."""
    try:
        # Not with our variables: a PYTHONPATH for this interpreter says nothing of that one's packages.
        answer = subprocess.run(
            [python, "-I", "-c", _ASK], capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines()
    return InstalledRelease(lines[-2], Path(lines[-1])) if answer.returncode == 0 and len(lines) > 1 else None


def _annotated(tree: ast.Module, name: str) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    yield item.target.id
