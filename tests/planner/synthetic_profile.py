"""Profiles whose costs and acceptance are known: what plans are tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine.fingerprint import Fingerprint
from planner.plan.profiles import Profile
from planner.profile.records import RequestRecord, StepRecord

CONTEXTS, BATCHES, SIZES, ROUNDS = (32, 512), (1, 2, 4, 8), (1, 2, 4, 8, 16), 3
HERE = Fingerprint(
    model="m",
    model_sha256="0" * 64,
    precision="int8",
    attention="native",
    threads=2,
    processor="p",
    kit="k",
)


def points(
    milliseconds: Callable[[int, int, int], float],
    *,
    contexts: Sequence[int] = CONTEXTS,
    batches: Sequence[int] = BATCHES,
    sizes: Sequence[int] = SIZES,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """The same figure in every round."""
    return [
        {
            "context": context,
            "batch": batch,
            "tokens": size,
            "ms": [milliseconds(context, batch, size)] * rounds,
        }
        for context in contexts
        for batch in batches
        for size in sizes
    ]


def chain(accepted: int, drafted: int) -> StepRecord:
    """A chain of `drafted` tokens, of which `accepted` were accepted."""
    reached = min(accepted + 1, drafted)
    return StepRecord(drafted, drafted, (1,) * reached, (0,) * accepted, tuple(range(accepted)), match=1)


def records(
    rate: float, *, requests: int = 20, steps: int = 30, drafted: int = 15, seed: int = 0
) -> list[RequestRecord]:
    """Requests each token of whose drafts is accepted with one probability, as far as those before it were."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(requests):
        drafts = [chain(min(int(random.geometric(1 - rate)) - 1, drafted), drafted) for _ in range(steps)]
        tokens = 1 + sum(len(draft.path) + 1 for draft in drafts)
        found.append(RequestRecord(str(number), "any", 0.0, tokens, 1 + steps, drafts))
    return found


def profile(
    found: Sequence[RequestRecord],
    verify: Callable[[int, int, int], float],
    draft: Callable[[int, int, int], float] = lambda context, batch, size: 0.0,
    *,
    name: str = "mine",
    read_ms: float = 0.0,
    buckets: Sequence[int] = (),
) -> Profile:
    """A profile of ANPD with these costs."""
    return Profile(
        name=name,
        speculation={"method": "anpd", "draft_length": 15, "ngram": 5, "drafted_by": "engine"},
        fingerprint=HERE,
        drafter={"method": "anpd"},
        records=found,
        cost={
            "verify": points(verify),
            "draft": points(draft, sizes=(1, 3, 7, 15)),
            "read": points(lambda *_: read_ms, contexts=(0, 384), batches=(1,), sizes=(128,)),
        },
        buckets=buckets,
        chunks=(128, 128),
        prompt_tokens=100.0,
    )
