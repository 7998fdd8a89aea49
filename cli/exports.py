"""What a plan decided, in the words of other engines, and what was measured in those of NVIDIA's simulators."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from build.trtllm.llm_api.arguments import speculative_config as tensorrt_llm_config
from build.trtllm.methods.table import METHODS, tree_of
from build.trtllm.methods.trees import as_braces
from build.trtllm.support.matrix import resolve
from deployments.drafting import Speculation
from deployments.spec import DeploymentSpec, SpecError, with_speculation
from engine.plan import Outlook
from engine.vllm.speculation import speculative_config
from planner.plan.section import as_yaml

_BY_LOAD = ("draft_length_schedule", "max_concurrency")
_DECIDED = ("draft_length", *_BY_LOAD)
_LONGEST_MODELLED = 5  # AISimulate's engine.nextn


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


def planned(
    spec: DeploymentSpec,
    section: Mapping[str, Any],
    tree: Sequence[Sequence[int]] = (),
    concurrencies: Iterable[int] = (),
) -> DeploymentSpec:
    """A deployment that drafts as the section of a plan for its method says.

    Its other settings and files stay its own; whether lengths adapt is for the embedded engine alone.

    Args:
        spec: the deployment.
        section: of the plan, for the embedded engine.
        tree: the best one, where a release's engine is built for one; empty: its own.
        concurrencies: that the plan was asked about. Compiled engines draft at every load, so they are told no limit
            where drafting pays at all of them.

    Raises:
        SpecError: the plan's lengths do not go with its other settings.
    """
    if section["method"] == "none":
        return with_speculation(spec, {"method": "none"})
    decided = {key: section[key] for key in _DECIDED if key in section}
    method = METHODS[section["method"]]
    if spec.engine.kind == "tensorrt_llm" and method.tree is not None:
        if decided.get("max_concurrency") == max(concurrencies, default=0):
            del decided["max_concurrency"]
        if tree:
            paths = tuple(tuple(path) for path in sorted(tree, key=lambda path: (len(path), path)))
            decided |= {"choices": paths, **method.tree.limits(paths)}
    own = spec.speculation.model_dump(exclude_unset=True, exclude={*_BY_LOAD, *decided})
    return with_speculation(spec, own | decided)


def told_to(spec: DeploymentSpec) -> str:
    """Its section, and what the release is told: `speculative_config`, or a compiled engine's tree as Triton has it.

    Raises:
        UnsupportedDeployment: the release cannot draft so; says what comes nearest.
    """
    section = spec.speculation.model_dump(mode="json", exclude_unset=True)
    if "draft_length_schedule" in section:  # whose keys are numbers, which JSON has not
        section |= spec.speculation.model_dump(include={"draft_length_schedule"})
    argument = _argument(spec)
    return as_yaml(section) + ("" if argument is None else "\n" + json.dumps(argument, indent=2))


def accepted_counts(outlooks: Iterable[Outlook]) -> Iterator[str]:
    """Options of AIConfigurator's command line, by draft length: accepted tokens of a step, which it asks for.

    `--nextn` is the draft length, and `--nextn-accepted` the average of accepted draft tokens in a decoding step, 0 to
    that many (`cli/main.py` and docs of ai-dynamo/aisimulate; `engine.nextn` and `engine.nextn_accepted` of its YAML).

    Args:
        outlooks: of one deployment at one load.
    """
    for outlook in outlooks:
        candidate = outlook.candidate
        if 0 < candidate.draft_length <= _LONGEST_MODELLED and not candidate.adaptive:
            accepted = min(max(outlook.tokens_per_step.value - 1, 0.0), candidate.draft_length)
            yield f"--nextn {candidate.draft_length} --nextn-accepted {accepted:.2f}"


def _argument(spec: DeploymentSpec) -> dict[str, Any] | None:
    if spec.engine.kind == "vllm":
        return speculative_config(spec.speculation, spec.vllm.max_batch_size)
    resolved = resolve(spec)
    if resolved.runtime == "llm_api":
        return tensorrt_llm_config(resolved)
    tree = tree_of(resolved)
    return None if tree is None else {f"{resolved.method}_choices": as_braces(tree)}
