"""Puts a plan together: every load that is asked about, and the same at the contexts that were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.plan import Cell, Objective, Plan
from planner.plan.choose import Option, choose
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile
from planner.plan.serving import medians, planned


def make_plan(
    deployment: str,
    profiles: Sequence[Profile],
    known: Sequence[Option],
    loads: Sequence[Traffic],
    objective: Objective,
    temperature: float,
    report: Callable[[str, float | None], None] = lambda line, share: None,
) -> Plan:
    """The plan of the first profile's deployment.

    Args:
        deployment: its name.
        profiles: all that options come from.
        known: the options.
        loads: what is asked about, of one context.
        objective: what is to be best.
        temperature: of the records that options were made from.
        report: gets what is decided, and the share of all that is done.

    Raises:
        ProfileError: costs of a load were not measured.
    """
    traffics = [*loads, *_elsewhere(loads, profiles[0])]
    cells = []
    for place, traffic in enumerate(traffics):
        report(f"{traffic.concurrency} users, context {traffic.context:.0f}", place / len(traffics))
        cells.append(choose(known, traffic, objective))
    return Plan(
        deployment=deployment,
        fingerprint=profiles[0].fingerprint,
        objective=objective,
        temperature=temperature,
        deployments={profile.name: planned(profile, profiles[0], temperature) for profile in profiles},
        verify_costs=medians(profiles[0].cost["verify"]),
        buckets=list(profiles[0].buckets),
        cells=sorted(cells, key=lambda cell: (cell.context, cell.concurrency)),
    )


def cells_at(plan: Plan, context: float) -> list[Cell]:
    """Those of one context, by concurrency."""
    return [cell for cell in plan.cells if cell.context == context]


def _elsewhere(loads: Sequence[Traffic], profile: Profile) -> list[Traffic]:
    """The same concurrencies and answers at the measured contexts, where prompts and answers fit there.

    Of prompts that are cached in part, as much is read there.
    """
    measured = sorted({row["context"] for row in profile.cost["verify"]})
    found = []
    for context in measured:
        for load in loads:
            prompt = context - load.output_tokens / 2
            if prompt >= 1 and context != load.context:
                new = load.prompt_tokens - load.cached_tokens
                cached = max(0.0, prompt - new) if load.cached_tokens else 0.0
                found.append(Traffic(load.concurrency, prompt, load.output_tokens, cached))
    return found
