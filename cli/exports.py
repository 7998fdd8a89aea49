"""What a plan decided, in the words of another engine."""

import json
from collections.abc import Mapping
from typing import Any

from build.trtllm.llm_api.arguments import speculative_config as tensorrt_llm_config
from build.trtllm.support.matrix import resolve
from deployments.spec import DeploymentSpec, SpecError, with_speculation
from deployments.speculation import Speculation
from engine.vllm.speculation import speculative_config
from planner.plan.section import as_yaml

_BY_LOAD = ("draft_length_schedule", "max_concurrency")
_DECIDED = ("draft_length", *_BY_LOAD)


def require_method(spec: DeploymentSpec, method: str) -> None:
    """Raise SpecError unless a plan for a method could go into a spec.

    That is one of TensorRT-LLM or vLLM with the same method; the embedded engine serves the plan itself.
    """
    if spec.engine.kind == "embedded":
        raise SpecError(
            f"{spec.name} is for the embedded engine, which serves the plan itself: speculation.plan"
        )
    if method != spec.speculation.method or not isinstance(spec.speculation, Speculation):
        raise SpecError(
            f"the plan drafts with {method}, {spec.name} with {spec.speculation.method}; give a spec with "
            "the plan's method"
        )


def planned(spec: DeploymentSpec, section: Mapping[str, Any]) -> DeploymentSpec:
    """A deployment that drafts as the section of a plan for its method says.

    Its other settings and files stay its own; whether lengths adapt is for the embedded engine alone.

    Raises:
        SpecError: the plan's lengths do not go with its other settings.
    """
    if section["method"] == "none":
        return with_speculation(spec, {"method": "none"})
    decided = {key: section[key] for key in _DECIDED if key in section}
    own = spec.speculation.model_dump(exclude_unset=True, exclude={*_BY_LOAD, *decided})
    return with_speculation(spec, own | decided)


def told_to(spec: DeploymentSpec) -> str:
    """Its section, and where the release takes one the argument `speculative_config` that follows from it.

    Raises:
        UnsupportedDeployment: the release cannot draft so; says what comes nearest.
    """
    section = spec.speculation.model_dump(mode="json", exclude_unset=True)
    if "draft_length_schedule" in section:  # whose keys are numbers, which JSON has not
        section |= spec.speculation.model_dump(include={"draft_length_schedule"})
    argument = _argument(spec)
    return as_yaml(section) + ("" if argument is None else "\n" + json.dumps(argument, indent=2))


def _argument(spec: DeploymentSpec) -> dict[str, Any] | None:
    if spec.engine.kind == "vllm":
        return speculative_config(spec.speculation, spec.vllm.max_batch_size)
    resolved = resolve(spec)
    return tensorrt_llm_config(resolved) if resolved.runtime == "llm_api" else None
