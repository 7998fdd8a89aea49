"""Environments are made once, made again when their lock changes, and are nothing when something fails."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from planner.bench.peers.environments import Environment, Unavailable
from planner.bench.peers.processes import ProgramError, run
from tests.outside.environments import debian_library, prepare_environment


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path))
    return tmp_path / "outside"


def test_a_program_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    script = "sleep 600 & echo $! > child; echo started; wait"
    with pytest.raises(ProgramError, match=r"not done after 1 s:\nstarted"):
        run(["sh", "-c", script], seconds=1, directory=tmp_path)
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < end, "the program's child still runs"
        time.sleep(0.02)


def test_a_failure_shows_what_the_program_said() -> None:
    with pytest.raises(ProgramError, match=r"status 3:\nout of luck"):
        run(["sh", "-c", "echo out of luck >&2; exit 3"], seconds=10)


@pytest.mark.outside
def test_an_environment_is_kept_until_its_lock_changes(cache: Path, tmp_path: Path) -> None:
    lock = tmp_path / "client.txt"
    lock.write_text("# nothing\n")
    environment = prepare_environment(lock)
    (environment.directory / "mark").touch()
    assert prepare_environment(lock) == environment
    assert (environment.directory / "mark").exists()
    lock.write_text("# nothing, in other words\n")
    assert prepare_environment(lock) == environment
    assert not (environment.directory / "mark").exists()
    printed = run([*environment.program("pip"), "--version"], seconds=60, variables=environment.variables())
    assert str(environment.directory) in printed


@pytest.mark.outside
def test_what_cannot_be_installed_is_unavailable_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    lock = tmp_path / "client.txt"
    lock.write_text(f"{tmp_path}/absent-1.0-py3-none-any.whl\n")
    with pytest.raises(Unavailable, match="absent"):
        prepare_environment(lock)
    assert list(cache.iterdir()) == []


def test_a_library_of_no_package_is_unavailable_and_leaves_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(cache))  # as where there is no apt
    with pytest.raises(Unavailable, match="the package libabsent is missing"):
        debian_library("libabsent.so.0", "libabsent")
    assert list(cache.iterdir()) == []


def test_variables_do_not_lead_a_client_astray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "HF_HUB_OFFLINE", "VIRTUAL_ENV"):
        monkeypatch.setenv(name, "ours")
    variables = Environment(tmp_path).variables(HF_HUB_OFFLINE="1")
    assert "ours" not in variables.values()
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert variables["PATH"].split(os.pathsep)[0] == str(tmp_path / "bin")
