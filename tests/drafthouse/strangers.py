"""Packages of other people that are called like rooms of the kit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

STRANGERS = ("build", "speculators", "engine", "deployments", "client")
CHECK = f"""
import importlib, sys
for name in {STRANGERS}:
    module = importlib.import_module(name)
    assert module.WHOSE == "theirs", f"import {{name}} gave {{module.__file__}}"
import speculators.config
assert speculators.config.read() == "theirs", "and what they import of themselves is theirs"
"""


def install(site: Path) -> None:
    """Put them where packages are installed; each has modules, one with a name that the kit has as well."""
    for name in STRANGERS:
        package = site / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text('WHOSE = "theirs"\n')
        (package / "anpd.py").write_text("")
        (package / "config.py").write_text(
            f"from {name} import WHOSE\n\n\ndef read():\n    import {name}.anpd\n    return {name}.WHOSE\n"
        )


def run_beside(paths: list[Path], program: str, directory: Path) -> str:
    """What a program prints with these folders on its path, and no other that is ours; it must succeed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=directory, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    return answer.stdout
