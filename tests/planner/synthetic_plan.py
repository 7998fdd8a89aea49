"""Plans from profiles whose costs and acceptance are known, for whoever serves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from engine.fingerprint import Fingerprint, drafter_identity
from engine.plan import Objective, Plan
from engine.planned import section_of
from planner.plan.choose import options
from planner.plan.plan import make_plan
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile


def plan_from(profiles: Sequence[Profile], concurrencies: Sequence[int] = (1, 2, 4, 8)) -> Plan:
    """The plan of profiles of chains of 15, for prompts of 100 tokens and answers of 64."""
    known = options(profiles[:1], 0.0)
    for other in profiles[1:]:
        known += options([other], 0.0)[1:]
    loads = [Traffic(level, 100, 64) for level in concurrencies]
    return make_plan(profiles[0].name, profiles, known, loads, Objective(), 0.0)


def of_deployment(profile: Profile, section: Mapping[str, Any], fingerprint: Fingerprint) -> Profile:
    """The profile as if a deployment with that section had been profiled here."""
    return replace(
        profile,
        speculation=section,
        fingerprint=fingerprint,
        drafter=drafter_identity(section_of(profile.name, section)),
    )
