"""Compiled networks are named by what is in them; other results by their deployment."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deployments.spec import DeploymentSpec, SpecError, with_loadtest
from drafthouse import ROOMS


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder, text in (("a/tiny", "one"), ("b/tiny", "two"), ("head", "three")):
        Path(folder).mkdir(parents=True)
        Path(folder, "config.json").write_text("{}")
        Path(folder, "model.safetensors").write_text(text)


def spec(model: str = "a/tiny", name: str = "x", method: str = "medusa", **sections: Any) -> DeploymentSpec:
    speculation: dict[str, Any] = {"method": method, **sections.pop("speculation", {})}
    if method != "anpd":
        speculation = {"checkpoint": "head", **speculation}
    content = {"name": name, "target": {"model": model}, "speculation": speculation, **sections}
    return DeploymentSpec.model_validate(content)


def places(deployment: DeploymentSpec) -> tuple[Path, Path]:
    return deployment.engine_directory, deployment.speculator_directory


def test_a_name_says_model_precision_and_length() -> None:
    target, speculator = places(spec())
    assert target.parent == speculator.parent == Path("runs/engines")
    assert target.name.startswith("tiny-int8-2048-")
    assert speculator.name.startswith("tiny-medusa-int8-2048-")


@pytest.mark.parametrize(
    "other",
    [
        {"model": "b/tiny"},
        {"engine": {"precision": "fp32"}},
        {"engine": {"max_sequence_length": 256}},
    ],
)
def test_what_differs_lies_elsewhere(other: dict[str, Any]) -> None:
    assert set(places(spec())).isdisjoint(places(spec(**other)))


@pytest.mark.parametrize(
    "same",
    [
        {"name": "y"},
        {"engine": {"max_batch_size": 2, "kv_cache_reuse": False}},
        {"speculation": {"max_concurrency": 2, "adaptive": False}},
    ],
)
def test_what_does_not_matter_to_the_graphs_is_shared(same: dict[str, Any]) -> None:
    assert places(spec()) == places(spec(**same))


def test_settings_of_the_drafter_s_graphs_move_the_drafter_alone() -> None:
    target, speculator = places(spec())
    other_target, other_speculator = places(spec(speculation={"num_heads": 2}))
    assert target == other_target and speculator != other_speculator
    assert (
        spec(method="eagle3").speculator_directory
        != spec(method="eagle3", speculation={"layers_to_capture": [1, 2, 3]}).speculator_directory
    )
    assert (
        spec(method="eagle3").speculator_directory
        == spec(method="eagle3", speculation={"draft_length": 9}).speculator_directory
    )


@pytest.mark.parametrize(
    ("path", "target_moves"),
    [
        *(
            ("a/tiny/model.safetensors", True),
            ("a/tiny/config.json", True),
            ("a/tiny/added_tokens.json", True),
        ),
        *(("head/model.safetensors", False), ("head/shard.pth", False)),
    ],
)
def test_changed_content_lies_elsewhere(path: str, target_moves: bool) -> None:
    target, speculator = places(spec())
    Path(path).write_text("changed")
    other_target, other_speculator = places(spec())
    assert (target != other_target) is target_moves
    assert speculator != other_speculator


def test_how_a_model_came_about_does_not_matter() -> None:
    before = places(spec())
    Path("a/tiny/drafthouse_target.json").write_text("{}")
    Path("head/training.json").write_text("{}")
    Path("a/tiny/README.md").write_text("x")
    assert places(spec()) == before


def test_a_name_needs_no_model() -> None:
    assert spec(model="nowhere").engine_directory.name.startswith("nowhere-int8-2048-")
    assert spec(method="anpd").speculator_directory.name.startswith("tiny-anpd-int8-2048-")


def test_a_model_that_cannot_be_read_is_told() -> None:
    Path("a/tiny/config.json").unlink()
    Path("a/tiny/config.json").symlink_to("/proc/self/mem")
    with pytest.raises(SpecError, match="x: a model cannot be read"):
        _ = spec().engine_directory


def test_results_are_named_after_the_deployment() -> None:
    first, second = spec(name="first"), spec(name="second")
    assert first.serving.repository == Path("runs/model_repo/first")
    assert second.loadtest.report == Path("runs/report/second")
    assert first.training.directory == second.training.directory == Path("runs/training/tiny")
    chosen = spec(
        name="mine",
        serving={"repository": "here"},
        training={"directory": "there/{target}", "checkpoint": "weights/{name}"},
    )
    assert chosen.serving.repository == Path("here")
    assert chosen.training.directory == Path("there/tiny")
    assert chosen.training.checkpoint == Path("weights/mine")
    assert DeploymentSpec.model_validate_json(chosen.model_dump_json()) == chosen


def test_the_kit_s_prompts_are_found_wherever_a_command_runs() -> None:
    """The tests of this file run in a directory of their own; what a spec names is looked for there."""
    assert len(spec().loadtest.prompts_file.read_text().splitlines()) == 72
    mine = with_loadtest(spec(), {"prompts": Path("mine.jsonl")})
    assert mine.loadtest.prompts_file == Path("mine.jsonl")
    assert "/" not in spec().model_dump_json(include={"loadtest": {"prompts"}, "training": {"data"}})


def test_the_kit_s_prompts_and_all_rooms_are_in_the_wheel() -> None:
    root = Path(__file__).parents[2]
    wheel = re.search(r"(?m)^packages = (\[.*\])$", (root / "pyproject.toml").read_text())
    assert wheel is not None
    packages = set(json.loads(wheel[1]))
    assert packages == ROOMS | {"drafthouse"}
    assert spec().loadtest.prompts_file.relative_to(root).parts[0] in packages
