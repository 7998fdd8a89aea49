"""Profiles of Medusa heads whose guesses are right as often as is said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from planner.plan.profiles import Profile
from planner.plan.ranks import Floats
from planner.profile.records import RequestRecord, StepRecord
from speculators.growth import Choices
from tests.planner.synthetic_profile import profile

Path = tuple[int, ...]
Cost = Callable[[int, int, int], float]


def drafted(paths: Sequence[Path], acceptance: Floats, steps: int, seed: int = 0) -> list[StepRecord]:
    """What becomes of drafts of a named tree if each guess is accepted as often as is said, ``[levels, ranks]``."""
    random, choices, found = np.random.default_rng(seed), Choices(paths), []
    order = {path: place for place, path in enumerate(paths)}
    for _ in range(steps):
        path: Path = ()
        children: list[int] = []
        ranks: list[int] = []
        while below := list(choices.ranks(path)):
            children.append(len(below))
            row = acceptance[len(path)]
            rank = int(random.choice(len(row) + 1, p=[*row, 1 - row.sum()]))
            if rank not in below:
                break
            ranks.append(below.index(rank))
            path = (*path, rank)
        nodes = tuple(order[path[: level + 1]] for level in range(len(path)))
        found.append(StepRecord(len(paths), choices.depth, tuple(children), tuple(ranks), nodes, match=0))
    return found


def medusa(paths: Sequence[Path] | None, drafts: Sequence[StepRecord], cost: Cost) -> Profile:
    """A profile of such drafts, ten requests, that cost a millisecond to make however deep."""
    requests = [RequestRecord(str(place), "any", 0.0, 1, 1, list(drafts[place::10])) for place in range(10)]
    for request in requests:
        request.steps += len(request.drafts)
        request.tokens += sum(len(draft.path) + 1 for draft in request.drafts)
    section = {"method": "medusa", "checkpoint": "heads", "num_heads": 3}
    if paths is not None:
        section["choices"] = [list(path) for path in paths]
    made = profile(requests, cost, lambda *_: 1.0)
    return replace(made, speculation=section, drafter={**section, "weights_sha256": None})
