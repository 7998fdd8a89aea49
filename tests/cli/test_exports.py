"""What a plan decided, as TensorRT-LLM's releases and vLLM's take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.trtllm.llm_api.schema import schema_findings
from build.trtllm.releases import LINES, LineName
from cli.exports import planned, require_method, told_to
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError, load_spec

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
SCHEDULE = {"draft_length": 5, "draft_length_schedule": {1: 5, 4: 2}}


def told(name: str, **section: Any) -> tuple[dict[str, Any], Any]:
    """The section and the argument for one of the examples."""
    text = told_to(planned(load_spec(DEPLOYMENTS / f"{name}.yaml"), section))
    before, brace, after = text.partition("\n{")
    return yaml.safe_load(before)["speculation"], json.loads(brace + after) if brace else None


@pytest.mark.parametrize(
    ("name", "method", "key", "schedule"),
    [
        ("llama3-8b-eagle3-trtllm-b", "eagle3", "draft_len_schedule", {"1": 5, "4": 2}),
        ("llama3-8b-draft-llmapi-trtllm", "draft_model", "draft_len_schedule", {"1": 5, "2": 2, "5": 0}),
        (
            "llama3-8b-eagle3-vllm",
            "eagle3",
            "num_speculative_tokens_per_batch_size",
            [[1, 1, 5], [2, 4, 2], [5, 64, 0]],
        ),
    ],
)
def test_a_schedule_goes_into_each_release_in_its_own_direction(
    name: str, method: str, key: str, schedule: object
) -> None:
    section, argument = told(name, method=method, adaptive=True, **SCHEDULE)
    assert section["draft_length_schedule"] == SCHEDULE["draft_length_schedule"]
    assert "adaptive" not in section, "of the embedded engine alone"
    assert argument[key] == schedule


@pytest.mark.parametrize(
    ("name", "line"), [("llama3-8b-eagle3-trtllm-b", "B"), ("llama3-8b-draft-llmapi-trtllm", "A")]
)
def test_it_is_valid_by_the_release_s_schema(name: str, line: LineName) -> None:
    method = load_spec(DEPLOYMENTS / f"{name}.yaml").speculation.method
    _, argument = told(name, method=method, **SCHEDULE)
    assert not list(schema_findings({"model": "m", "speculative_config": argument}, LINES[line], {}))
    wrong = {**argument, "draft_len_schedule": "4: 2"}
    assert list(schema_findings({"model": "m", "speculative_config": wrong}, LINES[line], {}))


def test_a_limit_goes_where_there_is_no_length() -> None:
    section, argument = told("llama3-8b-eagle3-trtllm-b", method="eagle3", max_concurrency=4)
    assert section["max_concurrency"] == argument["max_concurrency"] == 4


def test_nothing_is_told_where_nothing_pays_or_the_kit_drafts() -> None:
    assert told("llama3-8b-eagle3-vllm", method="none") == ({"method": "none"}, None)
    section, argument = told("llama3-8b-anpd-llmapi-trtllm", method="anpd", max_concurrency=4)
    assert section["max_concurrency"] == 4 and argument is None


def test_what_a_release_ignores_is_refused() -> None:
    for name, method in (("llama3-8b-anpd-trtllm", "anpd"), ("llama3-8b-eagle3-trtllm", "eagle3")):
        with pytest.raises(UnsupportedDeployment, match="draft_length_schedule"):
            told(name, method=method, **SCHEDULE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-anpd", "is for the embedded engine, which serves the plan itself"),
        ("llama3-8b-draft-llmapi-trtllm", "the plan drafts with eagle3, .* with draft_model"),
    ],
)
def test_a_spec_that_it_cannot_go_into_is_refused(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        require_method(load_spec(DEPLOYMENTS / f"{name}.yaml"), "eagle3")
