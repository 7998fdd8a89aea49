"""Which deployments can be measured beside each other: those that differ in how they speculate alone."""

import itertools
from collections.abc import Sequence

from deployments.spec import DeploymentSpec, SpecError
from deployments.speculation import Anpd, NoSpeculation

BASE = "none"
# What a comparison sets itself, and what decides about requests that it does not make.
_OF_NO_MATTER = {
    *("max_batch_size", "max_queue_size", "kv_cache_reuse", "threads"),
    *("max_queue_seconds", "max_request_seconds", "max_one_shot_tokens", "kv_cache_sharing"),
}


def check_beside(spec: DeploymentSpec, other: DeploymentSpec) -> None:
    """Refuse a deployment of another target or engine.

    Raises:
        SpecError: says what differs.
    """
    differing = [
        f"{key} is {theirs} and not {ours}"
        for key, theirs, ours in (
            ("target.model", other.target.model, spec.target.model),
            *(
                (f"engine.{key}", getattr(other.embedded, key), getattr(spec.embedded, key))
                for key in type(spec.embedded).model_fields
                if key not in _OF_NO_MATTER
            ),
        )
        if theirs != ours
    ]
    if differing:
        raise SpecError(
            f"{other.name} cannot be measured beside {spec.name}: {', '.join(differing)}; what differs has to be the "
            "speculation alone"
        )


def named_deployments(spec: DeploymentSpec, beside: Sequence[DeploymentSpec]) -> dict[str, DeploymentSpec]:
    """The deployments that are compared, by method; those whose method is taken by their own name.

    The first one is without speculation. Beside a deployment that is alone comes ANPD, which every target can have.

    Raises:
        SpecError: two would be the same arm, or a name is taken as well.
    """
    for first, second in itertools.combinations((spec, *beside), 2):
        if first.speculation == second.speculation:
            raise SpecError(
                f"{second.name} speculates as {first.name} does, so there is nothing to compare; name each once"
            )
    plain = spec.model_copy(update={"speculation": NoSpeculation()})
    if not beside and spec.speculation.method != BASE:
        anpd = spec.model_copy(update={"speculation": Anpd(method="anpd")})
        return {BASE: plain, "anpd": anpd, spec.speculation.method: spec}
    found = {BASE: plain}
    for each in (spec, *beside):
        method = each.speculation.method
        name = each.name if method in found else method
        if method == BASE:
            continue
        if name in found:
            raise SpecError(f"{each.name} is named twice: {method} and the name itself are taken")
        found[name] = each
    return found
