"""Other people's programs that judge our files, and where our files lie.

Each is fetched once into the kit's cache; where that is impossible, the test skips and says why.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.bench.peers.environments import Environment, Unavailable
from tests.outside.environments import debian_program, prepare_environment

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
_REQUIREMENTS = Path(__file__).parent / "requirements"


def environment(name: str) -> Environment:
    """The virtual environment of `requirements/NAME.txt`."""
    try:
        return prepare_environment(_REQUIREMENTS / f"{name}.txt")
    except Unavailable as reason:
        pytest.skip(f"{name}: {reason}")


def prometheus(program: str) -> Path:
    """`prometheus` or `promtool`."""
    try:
        return debian_program(program, "prometheus")
    except Unavailable as reason:
        pytest.skip(f"{program}: {reason}")
