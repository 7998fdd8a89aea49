"""Which candidate is best for a traffic, by which measure, and what it gains over none.

Example::

    cell = choose(options([profile], temperature=0.0), Traffic(1, 300, 64), Objective())
    cell.best.candidate.draft_length, cell.best.gain            # 7, 1.31 (1.22 to 1.38)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.control.errors import ProfileError
from engine.plan import Candidate, Cell, Estimate, Objective, Outlook
from planner.plan.predict import Prediction, Predictor, Traffic
from planner.plan.profiles import Profile
from planner.plan.replay import Behaviour, longest_draft, replay
from speculators.model_free import MODEL_FREE
from speculators.registry import METHODS, create, settings_of

Floats = NDArray[np.float64]
LEVEL = 0.9
ALIKE = 0.03
"""Share by which an option has to be worth more than one with shorter drafts to be chosen: predictions of gains are off
by more than that (docs/choose.md)."""
_SLOW = 0.9  # quantile of requests that latency is about
NONE = Candidate(deployment=None, method="none", draft_length=0, adaptive=False)


@dataclass(frozen=True)
class Option:
    """A candidate with what it does on the recorded prompts, and who knows its costs."""

    candidate: Candidate
    behaviour: Behaviour
    predictor: Predictor
    plain: Behaviour


def options(profiles: Sequence[Profile], temperature: float) -> list[Option]:
    """Every method and draft length that the profiles know, plain decoding first, shorter ones before longer ones.

    Raises:
        ProfileError: a profile lacks the temperature, or costs.
    """
    found: list[Option] = []
    for profile in profiles:
        records, predictor = profile.at(temperature), Predictor(profile)
        plain = replay(records, 0, adaptive=False)
        if not len(plain.steps):
            raise ProfileError("its answers end with their first token")
        if not found:
            found.append(Option(NONE, plain, predictor, plain))
        for candidate in _candidates(profile, longest_draft(records), predictor):
            behaviour = replay(
                records,
                candidate.draft_length,
                adaptive=candidate.adaptive,
                probes=most_probes(profile.speculation),
            )
            found.append(Option(candidate, behaviour, predictor, plain))
    return found


def _candidates(profile: Profile, longest: int, predictor: Predictor) -> Iterator[Candidate]:
    drafted = max(predictor.draft.sizes) if predictor.draft else 0
    most = min(longest, drafted, max(predictor.verify.sizes) - 1 - most_probes(profile.speculation))
    method = profile.speculation["method"]
    # Those that end their drafts by their own confidence have none to choose, and records do not hold that of others.
    ways = (False, True) if method in MODEL_FREE and not create(method).ends_drafts else (False,)
    for length in range(1, most + 1):
        for adaptive in ways:
            yield Candidate(deployment=profile.name, method=method, draft_length=length, adaptive=adaptive)


def most_probes(speculation: Mapping[str, Any]) -> int:
    """Tokens that a method runs in a step beside what it drafts."""
    method = speculation["method"]
    if method not in METHODS:
        return 0
    settings = {name: speculation[name] for name in settings_of(method) if name in speculation}
    return create(method, **settings).requirements.max_probes


def choose(known: Sequence[Option], traffic: Traffic, objective: Objective) -> Cell:
    """The best of the options.

    What another profile than the first measured counts by its ratio to plain decoding in the same profile: two
    profiles are two runs, between which a machine may have become another. Options of one that does not cover the
    traffic are left out.

    Raises:
        ProfileError: costs of this traffic were not measured in the first profile.
    """
    base = known[0].predictor.predict(known[0].plain, traffic)
    plain: dict[int, Prediction | None] = {id(known[0].predictor): base}
    outlooks = []
    for option in known:
        key = id(option.predictor)
        if key not in plain:
            plain[key] = None
            with suppress(ProfileError):
                plain[key] = option.predictor.predict(option.plain, traffic)
        own = plain[key]
        if own is not None:
            outlooks.append(_compared(option, base, own, traffic, objective))
    return Cell(
        concurrency=traffic.concurrency,
        prompt_tokens=traffic.prompt_tokens,
        output_tokens=traffic.output_tokens,
        context=traffic.context,
        cached_tokens=traffic.cached_tokens,
        best=best_of(outlooks),
        candidates=outlooks,
    )


def outlook_of(option: Option, first: Option, traffic: Traffic) -> Outlook:
    """What an option brings in a run in which plain decoding is as fast as in the profile of the first one.

    Raises:
        ProfileError: costs of this traffic were not measured.
    """
    base = first.predictor.predict(first.plain, traffic)
    own = base if option.predictor is first.predictor else option.predictor.predict(option.plain, traffic)
    return _compared(option, base, own, traffic, Objective())


def best_of(outlooks: Sequence[Outlook]) -> Outlook:
    """The one that is worth most; of those that are alike, the one with the shortest drafts, or none."""
    most = max(each.worth for each in outlooks)
    able = [each for each in outlooks if each.worth >= most - abs(most) * ALIKE]
    return min(able, key=lambda each: each.candidate.draft_length)


def worth(found: Prediction, traffic: Traffic, objective: Objective) -> float:
    """What is to be as large as can be."""
    tokens_per_second = float(found.tokens_per_second[0])
    if objective.kind == "throughput":
        return tokens_per_second
    ttft, decoding = float(found.ttft_ms[0]), float(found.tpot_ms[0]) / found.shares
    if objective.kind == "latency":
        slow = float(np.quantile(decoding, _SLOW))
        return -(ttft + slow * (traffic.output_tokens - 1))
    late = objective.ttft_ms is not None and ttft > objective.ttft_ms
    in_time = np.ones(len(decoding)) if objective.tpot_ms is None else decoding <= objective.tpot_ms
    return 0.0 if late else tokens_per_second * float(np.mean(in_time))


def _compared(
    option: Option, base: Prediction, own: Prediction, traffic: Traffic, objective: Objective
) -> Outlook:
    found = option.predictor.predict(option.behaviour, traffic)
    scaled = _rescaled(found, base, own)
    gain = found.tokens_per_second / own.tokens_per_second
    return _outlook(option.candidate, scaled, gain, worth(scaled, traffic, objective))


def _rescaled(found: Prediction, base: Prediction, own: Prediction) -> Prediction:
    """The prediction in a run in which plain decoding is as fast as in the first profile."""
    if base is own:
        return found
    slower = base.latency_ms / own.latency_ms
    times = ("step_ms", "draft_ms", "ttft_ms", "tpot_ms", "latency_ms")
    changed = {name: getattr(found, name) * slower for name in times}
    return replace(found, **changed, tokens_per_second=found.tokens_per_second / slower)


def _outlook(candidate: Candidate, found: Prediction, gain: Floats, value: float) -> Outlook:
    return Outlook(
        candidate=candidate,
        tokens_per_step=estimate(found.tokens_per_step),
        step_ms=estimate(found.step_ms),
        draft_ms=estimate(found.draft_ms),
        tokens_per_second=estimate(found.tokens_per_second),
        ttft_ms=estimate(found.ttft_ms),
        tpot_ms=estimate(found.tpot_ms),
        latency_ms=estimate(found.latency_ms),
        gain=estimate(gain),
        worth=value,
    )


def estimate(samples: Floats) -> Estimate:
    """The first sample, with the interval of the others."""
    low, high = (
        np.quantile(samples[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(samples) > 1 else samples[[0, 0]]
    )
    value = float(samples[0])
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value))
