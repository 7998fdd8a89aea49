"""Whatever places a spec names, building changes nothing but those, and what is not the kit's own not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from build.targets.architecture import Architecture
from cli.main import app
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.ports import free_ports
from tests.trees import state_of

FREE = ["new", "new/deep/er", "empty", "to-nowhere", "served", "to-served", "runs/model_repo/x"]
"""Places that the kit may take: nothing is there, or a repository that it has made."""
FOREIGN = [
    *("precious", "precious/thesis.txt", "to-precious", "theirs", "used", "models", "models/tiny", "models/tiny/1"),
    *("runs", "runs/engines", "runs/engines/x", ".", "..", "../outside", "/", "/etc", "runs/report/x", "runs/report"),
    *("runs/training", "/proc/self/cwd/precious"),
]  # fmt: skip
PORTS = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))


def spec(**sections: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "target": {"model": "models/tiny"},
        "engine": {"max_sequence_length": 128, "max_batch_size": 2},
        **sections,
        "serving": {**PORTS, **sections.get("serving", {})},
    }


def build(content: dict[str, Any], *options: str) -> int:
    Path("spec.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(app, ["build", *options, "spec.yaml"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a model, its engine, somebody's work, and repositories of the kit."""
    work = tmp_path_factory.mktemp("world") / "work"
    work.mkdir()
    here = Path.cwd()
    os.chdir(work)
    config = tiny_config("llama", head_dim=32)
    write_huggingface(Path("models/tiny"), config, random_weights(Architecture.from_config(config)))
    for folder in ("precious", "../outside", "theirs"):
        Path(folder).mkdir()
        Path(folder, "thesis.txt").write_text("years of work")
    Path("theirs/drafthouse.json").write_text('{"files": 7}')
    Path("empty").mkdir()
    for name in ("served", "used"):
        assert build(spec(name="before", serving={"repository": name})) == 0
    Path("used/my_model").mkdir()
    Path("used/my_model/config.pbtxt").write_text("mine")
    for name, target in (("to-precious", "precious"), ("to-nowhere", "nowhere"), ("to-served", "served")):
        Path(name).symlink_to(target)
    yield work
    os.chdir(here)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.sampled_from([*FREE, *FOREIGN]),
    options=st.sampled_from([[], ["--check"], ["--dry-run"]]),
    report=st.none() | st.sampled_from(FOREIGN),
)
def test_nothing_but_the_repository_changes(
    place: str, options: list[str], report: str | None, world: Path, tmp_path: Path
) -> None:
    assume(report is None or not place.startswith("runs/report"))  # which is free where reports go elsewhere
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world.parent, copy, symlinks=True)
    os.chdir(copy / "work")
    content = spec(serving={"repository": place})
    if report is not None:
        content["loadtest"] = {"report": report}
    Path("spec.yaml").write_text(yaml.safe_dump(content))
    named = Path(os.path.realpath(place))
    before = {**state_of(copy), **own(place)}
    code = build(content, *options)
    after = {**state_of(copy), **own(place)}
    if place in FOREIGN and options != ["--dry-run"]:
        assert code == 2
    if place in FOREIGN or options:
        assert after == before
    else:
        changed = {path for path in {*before, *after} if before.get(path) != after.get(path)}
        allowed = {named, *named.parents}
        assert all(Path(path) in allowed or named in Path(path).parents for path in changed), changed
        assert (code == 0) == (named / "ensemble" / "config.pbtxt").is_file() or place in (
            "served",
            "to-served",
        )


def own(place: str) -> dict[str, str]:
    """Directories outside the world are only listed."""
    path = Path(place)
    if not path.is_absolute() or not path.is_dir():
        return {}
    return {str(entry): "" for entry in path.iterdir()}
