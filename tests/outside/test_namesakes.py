"""The kit in vLLM's own process, with pypa's `build` and vLLM's `speculators` installed: each finds its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from planner.bench.peers.environments import Environment, Unavailable
from planner.bench.peers.processes import run
from tests.drafthouse.test_carried import vllm_repository
from tests.outside.environments import REQUIREMENTS, prepare_environment

pytestmark = pytest.mark.outside

# `speculators` imports a dozen packages of its own; where Python would look for it is what is asked.
CHECK = """
import importlib.metadata, importlib.util, sys
from vllm.plugins import load_general_plugins
load_general_plugins()
assert "drafthouse.engine.vllm.plugin" in sys.modules, "vLLM has loaded the plugin"
from drafthouse.engine.vllm.proposer import NgramTable
assert NgramTable.__module__ == "drafthouse.speculators.anpd"
import build
assert build.ProjectBuilder and build.__version__ == importlib.metadata.version("build")
assert importlib.util.find_spec("speculators").origin.startswith(sys.argv[1])
"""


@pytest.mark.parametrize("order", [1, -1])
def test_the_plugin_is_loaded_and_hides_nothing(
    vllm_environment: Environment, tmp_path: Path, order: int
) -> None:
    try:
        others = prepare_environment(REQUIREMENTS / "namesakes.txt")
    except Unavailable as reason:
        pytest.skip(f"build and speculators: {reason}")
    site = others.installed("build").parent
    paths = [vllm_repository(tmp_path) / "tensorrt_llm" / "1", site][::order]
    variables = vllm_environment.variables(PYTHONPATH=os.pathsep.join(map(str, paths)))
    run([vllm_environment.python, "-c", CHECK, site], seconds=240, variables=variables, directory=tmp_path)
