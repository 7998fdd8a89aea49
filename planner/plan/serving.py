"""What a plan carries for whoever serves it: costs as medians, and how likely the nodes of drafts are accepted."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.plan import CostPoint, PlannedDeployment, Survival, Trees
from planner.plan.profiles import Profile
from planner.plan.trees import planned_trees
from planner.profile.records import StepRecord
from speculators.match import LONGEST

_DIGITS = 4
_Points = Sequence[Mapping[str, Any]]


def medians(points: _Points, scale: float = 1.0) -> list[CostPoint]:
    """The points of a profile's costs, each with the median of its rounds."""
    return [
        CostPoint(
            context=row["context"],
            batch=row["batch"],
            tokens=row["tokens"],
            ms=round(scale * statistics.median(row["ms"]), _DIGITS),
        )
        for row in points
    ]


def planned(profile: Profile, base: Profile, temperature: float) -> PlannedDeployment:
    """What serving needs of a profile.

    Args:
        profile: of the deployment.
        base: whose costs of verification the plan has: drafting is brought to the speed that its machine had then.
        temperature: of the records that are counted.

    Raises:
        ProfileError: the temperature was not profiled.
    """
    drafts = [draft for record in profile.at(temperature) for draft in record.drafts]
    trees = planned_trees(profile, temperature)
    # A named tree gives way to the best one; one of the likeliest nodes is made anew in every step.
    replaced = trees if trees is not None and profile.speculation.get("choices") else None
    tree = {"choices": [list(path) for path in replaced.choices]} if replaced else {}
    return PlannedDeployment(
        speculation={**profile.speculation, **tree},
        drafter={**profile.drafter, **tree},
        draft_costs=medians(profile.cost["draft"], _speed(base.cost["verify"], profile.cost["verify"])),
        survival=[
            _of_tree(match, len(found), replaced) if replaced else _survival(match, found)
            for match in range(LONGEST + 1)
            if (found := [draft for draft in drafts if draft.match == match])
        ],
        trees=trees,
    )


def _speed(base: _Points, other: _Points) -> float:
    """How many times as long the same steps took in the first of two profiles."""
    there = {(row["context"], row["batch"], row["tokens"]): statistics.median(row["ms"]) for row in other}
    ratios = [
        statistics.median(row["ms"]) / there[key]
        for row in base
        if (key := (row["context"], row["batch"], row["tokens"])) in there
    ]
    return statistics.median(ratios) if ratios else 1.0


def _of_tree(match: int, drafts: int, trees: Trees) -> Survival:
    """What `drafts` drafts of a tree that was not drafted yet are expected to count."""
    return Survival(
        match=match,
        tried=[drafts] * len(trees.choices),
        accepted=[round(drafts * value) for value in trees.acceptance],
    )


def _survival(match: int, drafts: Iterable[StepRecord]) -> Survival:
    found = list(drafts)
    nodes = range(max(draft.nodes for draft in found))
    return Survival(
        match=match,
        tried=[sum(draft.nodes > node for draft in found) for node in nodes],
        accepted=[sum(node in draft.path for draft in found) for node in nodes],
    )
