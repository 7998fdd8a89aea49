"""How often each of a drafter's guesses is the right one, by its rank and its level of the tree.

Sequoia (arXiv 2402.12374) makes its trees of the probability that the r-th guess below an accepted node is the accepted
one, by rank alone; here by level, too, since Medusa's later heads are right less often. Guesses are ranked and not
drawn, so a guess is as often right whether or not the others are verified beside it.

Where the section names its tree, the same guesses are there in every step, and what was accepted of them is counted as
it is. Where a request is about to end there is room for the likeliest ones alone, the first of each node; such drafts
count only where answers are shorter than the tree, so that there are no whole ones. A tree of the likeliest nodes
leaves guesses out where it is sure of others; there they count as wrong, so what is told of the lower ranks is too
little rather than too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.methods import TRAINED
from planner.profile.records import RequestRecord, StepRecord
from speculators.growth import Choices

Floats = NDArray[np.float64]
_SHRUNK = 20.0  # trials that the mean over all levels counts for


def has_choices(speculation: Mapping[str, Any]) -> bool:
    """Whether a method's tree can be named by the ranks of its guesses."""
    method = TRAINED.get(speculation["method"])
    return method is not None and "choices" in method.settings


def rank_acceptance(records: Iterable[RequestRecord], speculation: Mapping[str, Any]) -> Floats | None:
    """``[levels, ranks]``: probability that a guess below an accepted node is accepted, or None if nothing was drafted.

    Args:
        records: of one deployment and temperature.
        speculation: its section.
    """
    named = Choices(speculation["choices"]) if speculation.get("choices") else None
    drafts = [draft for record in records for draft in record.drafts if draft.children]
    if named is not None:
        drafts = [draft for draft in drafts if draft.nodes == named.total] or drafts
    if not drafts:
        return None
    levels = max(len(draft.children) for draft in drafts)
    ranks = named.most_children if named else max(max(draft.children) for draft in drafts)
    tried, accepted = np.zeros((levels, ranks)), np.zeros((levels, ranks))
    for draft in drafts:
        for level, (known, hit) in enumerate(_guesses(draft, named, ranks)):
            tried[level, known] += 1
            if hit is not None:
                accepted[level, hit] += 1
    everywhere = accepted.sum(axis=0) / np.maximum(tried.sum(axis=0), 1)
    found = (accepted + _SHRUNK * everywhere) / (tried + _SHRUNK)
    return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), 1))


def _guesses(
    draft: StepRecord, named: Choices | None, ranks: int
) -> Iterable[tuple[Sequence[int], int | None]]:
    """At each node that was reached: ranks that were tried there, and the one that was accepted."""
    path: tuple[int, ...] = ()
    for level in range(len(draft.children)):
        known = range(ranks) if named is None else named.ranks(path)[: draft.children[level]]
        hit = known[draft.ranks[level]] if level < len(draft.ranks) else None
        yield known, hit
        if hit is not None:
            path = (*path, hit)
