"""What `drafthouse peers --beside` compares: deployments that speculate differently, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.spec import DeploymentSpec, SpecError
from planner.bench.peers.arms import embedded_arms
from planner.bench.peers.beside import check_beside, named_deployments


def deployment(
    name: str,
    *,
    target: str = "m",
    engine: dict[str, Any] | None = None,
    speculation: dict[str, Any] | None = None,
) -> DeploymentSpec:
    content = {"name": name, "target": {"model": target}, "engine": engine or {}}
    return DeploymentSpec.model_validate({**content, "speculation": speculation or {"method": "none"}})


SUFFIX = {"method": "suffix_automaton"}
LOOKUP = {"method": "prompt_lookup"}


def test_arms_are_the_methods_of_the_deployments_and_no_others() -> None:
    first, second = deployment("a", speculation=SUFFIX), deployment("b", speculation=LOOKUP)
    assert list(named_deployments(first, [second])) == ["none", "suffix_automaton", "prompt_lookup"]
    assert list(named_deployments(deployment("a"), [second])) == ["none", "prompt_lookup"]
    assert list(named_deployments(first, [])) == ["none", "anpd", "suffix_automaton"]
    assert list(named_deployments(deployment("a"), [])) == ["none"], "engines without speculation"


def test_a_method_that_comes_twice_is_named_by_its_deployment() -> None:
    first = deployment("a", speculation=LOOKUP)
    second = deployment("b", speculation={**LOOKUP, "draft_length": 9})
    found = named_deployments(first, [second])
    assert list(found) == ["none", "prompt_lookup", "b"]
    assert found["b"].speculation == second.speculation
    namesake = deployment("b", speculation={**LOOKUP, "draft_length": 4})
    with pytest.raises(SpecError, match="b is named twice"):
        named_deployments(first, [second, namesake])


def test_what_would_be_the_same_arm_twice_is_refused() -> None:
    first, second = deployment("a", speculation=LOOKUP), deployment("b", speculation=SUFFIX)
    again = deployment("c", engine={"max_batch_size": 3}, speculation=SUFFIX)
    with pytest.raises(SpecError, match="c speculates as b does, so there is nothing to compare"):
        named_deployments(first, [second, again])
    with pytest.raises(SpecError, match="a speculates as a does"):
        named_deployments(first, [first])


def test_every_arm_has_the_engine_of_the_first_and_its_own_speculation() -> None:
    first = deployment("a", engine={"max_batch_size": 2, "threads": 1}, speculation=SUFFIX)
    second = deployment("b", engine={"max_batch_size": 32}, speculation={**LOOKUP, "draft_length": 9})
    check_beside(first, second)
    arms = embedded_arms(first, 2, [second], batch=8)
    specs = [DeploymentSpec.model_validate(arm.settings["spec"]) for arm in arms]
    assert specs[0].engine == specs[1].engine == specs[2].engine
    assert specs[0].embedded.max_batch_size == 8
    assert [spec.speculation for spec in specs[1:]] == [first.speculation, second.speculation]


def test_as_many_requests_wait_as_are_asked_at_once() -> None:
    few = deployment("a", engine={"max_queue_size": 3})
    (spec, *_) = (
        DeploymentSpec.model_validate(arm.settings["spec"]) for arm in embedded_arms(few, 1, batch=8)
    )
    assert spec.embedded.max_queue_size == 8


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (deployment("b", target="other"), "target.model is other and not m"),
        (deployment("b", engine={"precision": "fp32"}), "engine.precision is fp32 and not int8"),
        (deployment("b", engine={"prefill_chunk": 64}), "engine.prefill_chunk is 64 and not 128"),
        (
            deployment("b", engine={"max_sequence_length": 8192, "precision": "fp32"}),
            "engine.precision is fp32 and not int8, engine.max_sequence_length is 8192 and not 2048",
        ),
        (deployment("b", engine={"kind": "vllm"}), r"b is for vLLM \(engine.kind\)"),
    ],
)
def test_another_target_or_engine_is_refused_with_what_differs(other: DeploymentSpec, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_beside(deployment("a"), other)
