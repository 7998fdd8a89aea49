"""The deployments whose drafters a spec serves: itself, or those that its plan names.

Example::

    for each in drafting(spec):                     # the spec once with the section of each
        compile_speculator(each.speculation, each.speculator_directory, ...)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deployments.drafting import Speculation
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation, NoSpeculation, PlannedSpeculation
from engine.fingerprint import Fingerprint, drafter_differences, drafter_identity
from engine.manifest import EngineError
from engine.plan import Plan, load_plan
from speculators.base import Speculator

_SECTION: TypeAdapter[AnySpeculation] = TypeAdapter(AnySpeculation)


def plan_of(spec: DeploymentSpec) -> Plan | None:
    """The plan that a spec serves, None if it serves none.

    Raises:
        EngineError: it is missing or damaged.
    """
    speculation = spec.speculation
    return load_plan(speculation.plan) if isinstance(speculation, PlannedSpeculation) else None


def drafting(spec: DeploymentSpec) -> tuple[DeploymentSpec, ...]:
    """The spec with the section of each deployment that drafts for it, under that one's name; at least one.

    Raises:
        EngineError: its plan is missing, damaged, or names what the embedded engine cannot draft with.
    """
    plan = plan_of(spec)
    if plan is None:
        return (spec,)
    found = {name: section_of(name, plan.deployments[name].speculation) for name in plan.served} or {
        spec.name: NoSpeculation()
    }
    return tuple(
        spec.model_copy(update={"name": name, "speculation": section}) for name, section in found.items()
    )


def speculator_directories(spec: DeploymentSpec) -> dict[str, Path]:
    """Where the compiled speculator of each of them lies.

    Raises:
        EngineError: as `drafting`.
        SpecError: target or checkpoint cannot be read.
    """
    return {each.name: each.speculator_directory for each in drafting(spec)}


def check_plan(spec: DeploymentSpec) -> None:
    """Refuse a plan that was made for something else than what is served here and now.

    Raises:
        EngineError: says what differs, and what to run.
        OSError: the model or a drafter cannot be read.
    """
    plan = plan_of(spec)
    if plan is None:
        return
    here = Fingerprint.of(spec)
    measured_here = calibrates(spec)
    differences = (plan.fingerprint.elsewhere(here) if measured_here else plan.fingerprint).differences(here)
    machine_alone = bool(differences) and not plan.fingerprint.elsewhere(here).differences(here)
    served = plan.served
    for each in drafting(spec):
        if each.name in served:
            now = drafter_identity(each.speculation)
            told = drafter_differences(plan.deployments[each.name].drafter, now)
            differences += [f"{line} ({each.name})" for line in told]
            machine_alone = machine_alone and not told
    if differences:
        also = "; or set speculation.calibrate, which measures costs at every start" if machine_alone else ""
        raise EngineError(
            f"{_place(spec)} is of something else: {'; '.join(differences)}; profile "
            f"{' and '.join(plan.deployments)} again with `drafthouse profile`, then run `drafthouse plan`{also}"
        )


def calibrates(spec: DeploymentSpec) -> bool:
    """Whether costs are measured when the engine starts, instead of the plan's."""
    return isinstance(spec.speculation, PlannedSpeculation) and spec.speculation.calibrate


def measures(spec: DeploymentSpec) -> bool:
    """Whether what is drafted follows from costs that are measured when the engine starts, without a plan."""
    speculation = spec.speculation
    return isinstance(speculation, Speculation) and speculation.draft_policy == "measured"


def named_apart(deployments: Mapping[str, Sequence[Speculator]]) -> Mapping[str, Sequence[Speculator]]:
    """Speculators of several deployments, each named by its deployment and method: methods may be the same."""
    for name, group in deployments.items():
        for each in group:
            each.name = f"{name}/{each.name}"
    return deployments


def with_plan_at(spec: DeploymentSpec, path: Path) -> DeploymentSpec:
    """The spec with its plan at another place."""
    return spec.model_copy(update={"speculation": spec.speculation.model_copy(update={"plan": path})})


def section_of(name: str, given: Mapping[str, Any]) -> AnySpeculation:
    """The section of a deployment as it stands in a plan.

    Raises:
        EngineError: it is none of this release, or one that the engine does not draft for.
    """
    try:
        whole = _SECTION.validate_python(dict(given))
        # Profiles write every key; those that nobody has set are not to be refused as settings without effect.
        set_keys = whole.model_dump(exclude_defaults=True) | {"method": whole.method}
        section = _SECTION.validate_python(set_keys)
    except ValidationError as error:
        first = error.errors()[0]
        raise EngineError(
            f"the plan's section of {name} is none of this release: {first['msg']}; run `drafthouse plan`"
        ) from None
    if isinstance(section, PlannedSpeculation) or (
        isinstance(section, Speculation) and section.drafted_by == "bls"
    ):
        raise EngineError(
            f"the plan names {name}, for which the engine does not draft; profile it with drafted_by: engine, and run "
            "`drafthouse plan`"
        )
    return section


def _place(spec: DeploymentSpec) -> Path | None:
    return spec.speculation.plan if isinstance(spec.speculation, PlannedSpeculation) else None
