"""A plan as the keys that a spec has today: one method, and how much of it by batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from deployments.drafting import Speculation
from engine.plan import Cell, Outlook
from planner.plan.choose import best_of
from planner.plan.profiles import Profile

_DECIDED = set(Speculation.model_fields) - {"drafted_by"}


def speculation_section(profile: Profile, cells: Sequence[Cell]) -> dict[str, Any]:
    """The `speculation` section that drafts as the plan says, as far as one method and a schedule can.

    Args:
        profile: of the deployment whose method it is.
        cells: of one context, every concurrency once.
    """
    ways = {
        adaptive: _lengths(profile.name, cells, adaptive=adaptive)
        for adaptive in _adaptive(profile.name, cells)
    }
    drafting = {adaptive: way for adaptive, way in ways.items() if any(length for length, _ in way.values())}
    if not drafting:
        return {"method": "none"}
    adaptive, chosen = max(drafting.items(), key=lambda way: sum(gain for _, gain in way[1].values()))
    kept = {key: value for key, value in profile.speculation.items() if key not in _DECIDED}
    if not profile.drafts_chains or "draft_length" not in kept:
        # Of a tree a schedule would cut nodes off, which the section has no key for: all of it, or nothing.
        most = max(level for level, (length, _) in chosen.items() if length)
        return {**kept, "adaptive": adaptive, "max_concurrency": most}
    schedule = _falling({level: length for level, (length, _) in chosen.items()})
    longest = schedule[min(schedule)]
    lookup = kept.get("suffix_automaton") or {}
    if "chain_length" in lookup:
        kept |= {"suffix_automaton": {**lookup, "chain_length": longest}}
        longest = min(longest, kept["draft_length"])
    return {**kept, "draft_length": longest, "draft_length_schedule": schedule, "adaptive": adaptive}


def as_yaml(section: Mapping[str, Any]) -> str:
    """Ready to be pasted into a spec."""
    text: str = yaml.safe_dump({"speculation": dict(section)}, sort_keys=False, default_flow_style=None)
    return text.rstrip()


def _adaptive(name: str, cells: Sequence[Cell]) -> list[bool]:
    found = {outlook.candidate.adaptive for cell in cells for outlook in _own(name, cell)}
    return sorted(found)


def _own(name: str, cell: Cell) -> list[Outlook]:
    return [outlook for outlook in cell.candidates if outlook.candidate.deployment == name]


def _lengths(name: str, cells: Sequence[Cell], *, adaptive: bool) -> dict[int, tuple[int, float]]:
    """Draft length and gain by concurrency."""
    found: dict[int, tuple[int, float]] = {}
    for cell in sorted(cells, key=lambda cell: cell.concurrency):
        able = [
            cell.candidates[0],
            *(each for each in _own(name, cell) if each.candidate.adaptive == adaptive),
        ]
        best = best_of(able)
        found[cell.concurrency] = best.candidate.draft_length, best.gain.value
    return found


def _falling(lengths: Mapping[int, int]) -> dict[int, int]:
    """A length for each batch up to the key; never a longer one for a larger batch, nothing beyond the last."""
    schedule: dict[int, int] = {}
    longest = next((length for length in lengths.values() if length), 0)
    for level, length in lengths.items():
        longest = min(longest, length) if schedule else longest
        if not longest:
            break
        for earlier in [key for key, value in schedule.items() if value == longest]:
            del schedule[earlier]
        schedule[level] = longest
    return schedule
