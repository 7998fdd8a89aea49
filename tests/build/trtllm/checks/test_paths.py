"""Paths that lead nowhere are told with what they may have been meant for; names on the hub are not refused."""

from pathlib import Path
from typing import Any

import pytest

from build.model_paths import is_hub_id, nearest
from build.trtllm.checks.paths import path_findings
from build.trtllm.support.matrix import unchecked
from tests.build.trtllm.checkpoints import checkpoint
from tests.build.trtllm.specs import deployment


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(method: str = "none", line: str = "A", runtime: str | None = None, **sections: Any) -> list[str]:
    """Severity and text of each finding."""
    resolved = unchecked(deployment(method, line, runtime, **sections))
    found = list(path_findings(resolved.spec, resolved.runtime))
    return [f"{finding.severity}: {finding.reason}" for finding in found]


@pytest.mark.parametrize(
    ("there", "given", "meant"),
    [
        ("models/llama3-8b", "models/lama3-8b", "models/llama3-8b"),
        ("models/llama3-8b", "model/llama3-8b", "models/llama3-8b"),
        ("models/llama3-8b", "model/llama-8b", "models/llama3-8b"),
        ("models/meta/llama3-8b", "models/mata/llama3-8b", "models/meta/llama3-8b"),
        ("models/llama3-8b", "models/opt", None),
        ("models/llama3-8b", "elsewhere/llama3-8b", None),
    ],
)
def test_the_nearest_place_that_exists(there: str, given: str, meant: str | None) -> None:
    Path(there).mkdir(parents=True)
    assert nearest(Path(given)) == (Path(meant) if meant else None)
    assert nearest(Path(given).resolve()) == (Path(meant).resolve() if meant else None)


def test_every_model_that_is_missing_is_named_with_what_was_meant() -> None:
    checkpoint(Path("models/llama3-8b"))
    checkpoint(Path("models/llama3-1b"))
    sections: dict[str, Any] = {"model": "models/llama-8b", "speculation": {"model": "models/llama3-1"}}
    assert told("draft_model", **sections) == [
        "error: target.model: models/llama-8b does not exist, did you mean models/llama3-8b?",
        "error: speculation.model: models/llama3-1 does not exist, did you mean models/llama3-1b?",
    ]
    sections["speculation"] = {"model": "models/llama3-8bb"}  # the target is not meant
    (found,) = told("draft_model", **sections | {"model": "models/llama3-8b"})
    assert (
        found == "error: speculation.model: models/llama3-8bb does not exist, did you mean models/llama3-1b?"
    )
    assert told("windowed", model="models/llama3-8b") == []
    assert told("medusa", model="models/llama3-8b", speculation={"checkpoint": "models/heads"}) == [
        "error: speculation.checkpoint: models/heads does not exist"
    ]


@pytest.mark.parametrize(
    ("name", "on_the_hub"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", True),
        ("Qwen/Qwen3-8B", True),
        ("models/llama3-8b", False),  # where the kit keeps models
        ("mine/llama3-8b", False),  # that folder is there
        ("mine/here", False),
        ("llama3-8b", False),
        ("/data/llama3-8b", False),
        ("../meta-llama/Llama-3.1-8B", False),
        ("a/b/c", False),
    ],
)
def test_a_name_on_the_hub_is_told_from_a_path(name: str, on_the_hub: bool) -> None:
    Path("mine/here").mkdir(parents=True)
    assert is_hub_id(Path(name)) is on_the_hub


def test_the_llm_api_may_fetch_what_engines_need_here() -> None:
    name = "meta-llama/Llama-3.1-8B-Instruct"
    (warned,) = told("none", "B", model=name)
    assert warned.startswith(f"warning: target.model: {name} does not exist here") and "hub" in warned
    (refused,) = told("none", "A", "engines", model=name)
    assert refused == f"error: target.model: {name} does not exist"


def test_an_eagle3_drafter_of_the_hub_keeps_its_layout_on_line_a() -> None:
    sections: dict[str, Any] = {"model": "a/target", "speculation": {"checkpoint": "a/drafter"}}
    assert "in the layout that it has there" in told("eagle3", "A", **sections)[1]


def test_calibration_data_is_looked_for_too() -> None:
    checkpoint(Path("target"))
    Path("data/cnn").mkdir(parents=True)
    sections: dict[str, Any] = {"model": "target", "quantization": "fp8", "runtime": "engines"}
    assert told(calibration_dataset="cnn_dailymail", **sections) == []
    assert told(calibration_dataset="abisee/cnn_dailymail", **sections) == []
    assert told(calibration_dataset="data/cnn", **sections) == []
    (found,) = told(calibration_dataset="./data/cn", **sections)
    assert found == "error: engine.calibration_dataset: ./data/cn does not exist, did you mean data/cnn?"
