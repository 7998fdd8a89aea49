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


def planned(spec: DeploymentSpec, section: Mapping[str, Any]) -> DeploymentSpec:
    """A deployment of TensorRT-LLM or vLLM that drafts as a plan's section says.

    Its other settings and files stay its own; whether lengths adapt is for the embedded engine alone.

    Raises:
        SpecError: it is for the embedded engine, which a plan itself is for, or has another method.
    """
    if spec.engine.kind == "embedded":
        raise SpecError(
            f"{spec.name} is for the embedded engine, which serves the plan itself: speculation.plan"
        )
    if section["method"] == "none":
        return with_speculation(spec, {"method": "none"})
    if section["method"] != spec.speculation.method or not isinstance(spec.speculation, Speculation):
        raise SpecError(
            f"the plan drafts with {section['method']}, {spec.name} with {spec.speculation.method}; give a spec with "
            "the plan's method"
        )
    decided = {key: section[key] for key in _DECIDED if key in section}
    own = spec.speculation.model_dump(exclude_unset=True, exclude={*_BY_LOAD, *decided})
    return with_speculation(spec, own | decided)


def told_to(spec: DeploymentSpec) -> str:
    """Its section, and where the release takes one the argument `speculative_config` that follows from it.

    Raises:
        UnsupportedDeployment: the release cannot draft so; says what comes nearest.
    """
    section = spec.speculation.model_dump(mode="json", exclude_unset=True)
    if (schedule := section.get("draft_length_schedule")) is not None:
        section["draft_length_schedule"] = {int(level): length for level, length in schedule.items()}
    argument = _argument(spec)
    return as_yaml(section) + ("" if argument is None else "\n" + json.dumps(argument, indent=2))


def _argument(spec: DeploymentSpec) -> dict[str, Any] | None:
    if spec.engine.kind == "vllm":
        return speculative_config(spec.speculation, spec.vllm.max_batch_size)
    resolved = resolve(spec)
    return tensorrt_llm_config(resolved) if resolved.runtime == "llm_api" else None
