"""What a plan decided, as TensorRT-LLM's releases and vLLM's take it."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.trtllm.llm_api.schema import schema_findings
from build.trtllm.methods.table import draft_tokens
from build.trtllm.releases import LINES, LineName
from build.trtllm.repository.engine_parameters import target_parameters
from build.trtllm.support.matrix import resolve
from cli.exports import accepted_counts, planned, require_method, told_to
from deployments.engines import TensorRtLlmEngine
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError, load_spec
from engine.plan import Objective
from planner.plan.choose import choose, options
from planner.plan.predict import Traffic
from tests.planner.synthetic_profile import profile, records

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
SCHEDULE = {"draft_length": 5, "draft_length_schedule": {1: 5, 4: 2}}


TREE = [(0,), (0, 0), (1,), (0, 1), (0, 0, 0), (2,), (1, 0)]


def told(
    name: str, *, tree: Sequence[tuple[int, ...]] = (), levels: Sequence[int] = (), **section: Any
) -> tuple[dict[str, Any], Any]:
    """The section and the argument for one of the examples."""
    text = told_to(planned(load_spec(DEPLOYMENTS / f"{name}.yaml"), section, tree, levels))
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
    ("method", "limits"),
    [("medusa", {"num_heads": 3}), ("eagle", {"depth": 3, "max_draft_tokens": 7, "max_non_leaves": 2})],
)
def test_compiled_engines_are_told_the_tree_and_built_for_it(method: str, limits: dict[str, int]) -> None:
    spec = load_spec(DEPLOYMENTS / f"vicuna-7b-{method}-trtllm.yaml")
    section, argument = told(spec.name, tree=TREE, levels=[1, 4], method=method, max_concurrency=4)
    assert "max_concurrency" not in section, "it pays at every load that was asked about"
    assert argument == {f"{method}_choices": "{0}, {1}, {2}, {0, 0}, {0, 1}, {1, 0}, {0, 0, 0}"}
    assert {key: section[key] for key in limits} == limits
    resolved = resolve(planned(spec, {"method": method}, TREE))  # which finds nothing wrong with the tree
    parameters = target_parameters(resolved, Path("engine"), Path("tokenizer"), None)
    assert parameters[f"{method}_choices"] == argument[f"{method}_choices"]
    assert draft_tokens(resolved.speculation) == len(TREE)


def test_engines_that_would_draft_where_it_does_not_pay_are_refused() -> None:
    with pytest.raises(UnsupportedDeployment, match="engines draft the same at every batch size"):
        told("vicuna-7b-medusa-trtllm", tree=TREE, levels=[1, 4, 16], method="medusa", max_concurrency=4)


def test_a_release_without_trees_says_so_and_an_engine_of_chains_keeps_its_own() -> None:
    spec = load_spec(DEPLOYMENTS / "vicuna-7b-medusa-trtllm.yaml")
    other = spec.model_copy(update={"engine": TensorRtLlmEngine(kind="tensorrt_llm", line="B")})
    with pytest.raises(UnsupportedDeployment, match="line: A"):
        told_to(planned(other, {"method": "medusa", "max_concurrency": 4}, TREE, [1, 4]))
    section, _ = told("llama3-8b-eagle3-trtllm-b", tree=TREE, method="eagle3", max_concurrency=4)
    assert "choices" not in section


def test_accepted_counts_are_what_aiconfigurator_takes() -> None:
    """By its own checks: a whole draft length, of AISimulate at most 5, and a count of 0 to that."""
    found = profile(records(0.7), lambda *_: 10.0)
    outlooks = choose(options([found], 0.0), Traffic(1, 100, 64), Objective()).candidates
    parser = ArgumentParser()
    parser.add_argument("--nextn", type=int)
    parser.add_argument("--nextn-accepted", type=float)
    lines = [parser.parse_args(line.split()) for line in accepted_counts(outlooks)]
    assert [line.nextn for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        assert 0 <= line.nextn_accepted <= line.nextn
        assert line.nextn_accepted == pytest.approx(sum(0.7**k for k in range(1, line.nextn + 1)), rel=0.06)
    assert list(accepted_counts(outlooks[:1])) == []


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
