"""What a plan's predictions were worth: beside what a load test of the same deployments has measured.

Predictions are made from profiles, of other prompts and another day; a load test asks a real server. For each of its
cells the same predictor is asked, with the cell's own users, prompts and answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from deployments.speculation import AnySpeculation
from engine.control.errors import ProfileError
from engine.plan import Candidate, Estimate, Outlook
from planner.plan.choose import NONE, Option, best_of, outlook_of
from planner.plan.predict import Traffic
from planner.plan.profiles import Profile

_SECTION: TypeAdapter[AnySpeculation] = TypeAdapter(AnySpeculation)
NEAR = 0.2


@dataclass(frozen=True)
class Measured:
    """A cell of a load test: one arm at one closed load.

    Attributes:
        load: its label.
        arm: its name.
        deployment: that served it; None: it did not say.
        asked: the draft length that requests asked for; None: the server's own.
        traffic: users, and tokens of prompts and answers on average.
        tokens_per_second: all rounds together.
    """

    load: str
    arm: str
    deployment: str | None
    asked: int | None
    traffic: Traffic
    tokens_per_second: float


@dataclass(frozen=True)
class Checked:
    """A cell beside its prediction, or why there is none."""

    measured: Measured
    candidate: Candidate | None
    outlook: Outlook | None
    reason: str = ""

    @property
    def predicted(self) -> Estimate | None:
        """Tokens a second."""
        return self.outlook.tokens_per_second if self.outlook else None

    @property
    def error(self) -> float:
        """Of a prediction, in relation to what was measured."""
        assert self.predicted is not None
        return self.predicted.value / self.measured.tokens_per_second - 1

    @property
    def inside(self) -> bool:
        """Whether the interval of the prediction holds what was measured."""
        assert self.predicted is not None
        return self.predicted.low <= self.measured.tokens_per_second <= self.predicted.high


@dataclass(frozen=True)
class Verdict:
    """Over all cells with a prediction.

    Attributes:
        cells: how many.
        median_error, near, inside: median of the errors' sizes; share of cells within `NEAR`; share of cells whose
            interval holds what was measured.
        pace: how fast the machine was, in relation to what the profiles say: the median of measured to predicted.
        paced_error, paced_near: of predictions that are multiplied by it, as above; a machine that has become slower or
            faster as a whole is gone from these.
        gain_error: median of the sizes of errors of gains over none at the same load; None: no load has both.
        choices: by load what the arm that a plan would choose has given, in relation to the best of those with a
            prediction; only of loads with several.
    """

    cells: int
    median_error: float
    near: float
    inside: float
    pace: float
    paced_error: float
    paced_near: float
    gain_error: float | None
    choices: Mapping[str, float]


def check(
    profiles: Sequence[Profile], known: Sequence[Option], measured: Sequence[Measured]
) -> list[Checked]:
    """Predict every cell."""
    sections = {profile.name: _section(profile) for profile in profiles}
    options = {option.candidate: option for option in known}
    whole = {each.deployment: each.draft_length for each in options}  # the longest comes last
    found = []
    for cell in measured:
        try:
            candidate = _candidate(cell, sections, whole)
            option = options.get(candidate)
            if option is None:
                raise ProfileError(_unknown(candidate))
            found.append(Checked(cell, candidate, outlook_of(option, known[0], cell.traffic)))
        except ProfileError as error:
            found.append(Checked(cell, None, None, str(error)))
    return found


def verdict(cells: Sequence[Checked]) -> Verdict:
    """What they come to; raises ProfileError if none has a prediction."""
    told = [cell for cell in cells if cell.predicted is not None]
    if not told:
        raise ProfileError(
            "; ".join(dict.fromkeys(cell.reason for cell in cells)) or "the load test has no cells"
        )
    found = np.array([cell.error for cell in told])
    pace = float(np.median(1 / (1 + found)))
    errors, paced = np.abs(found), np.abs((1 + found) * pace - 1)
    return Verdict(
        len(told),
        float(np.median(errors)),
        float(np.mean(errors <= NEAR)),
        float(np.mean([cell.inside for cell in told])),
        pace,
        float(np.median(paced)),
        float(np.mean(paced <= NEAR)),
        _gain_error(told),
        dict(_choices(told)),
    )


def _gain_error(told: Sequence[Checked]) -> float | None:
    plain = {cell.measured.load: cell.error for cell in told if cell.candidate == NONE}
    gains = [
        (1 + cell.error) / (1 + plain[cell.measured.load]) - 1
        for cell in told
        if cell.candidate != NONE and cell.measured.load in plain
    ]
    return float(np.median(np.abs(gains))) if gains else None


def _choices(told: Sequence[Checked]) -> Iterator[tuple[str, float]]:
    for load in dict.fromkeys(cell.measured.load for cell in told):
        arms = [cell for cell in told if cell.measured.load == load]
        if len(arms) > 1:
            chosen = best_of([cell.outlook for cell in arms if cell.outlook is not None])
            given = next(cell.measured.tokens_per_second for cell in arms if cell.outlook is chosen)
            yield load, given / max(cell.measured.tokens_per_second for cell in arms)


def _section(profile: Profile) -> AnySpeculation | None:
    try:
        return _SECTION.validate_python(dict(profile.speculation))
    except ValidationError:  # of another release
        return None


def _candidate(
    cell: Measured, sections: Mapping[str, AnySpeculation | None], whole: Mapping[str | None, int]
) -> Candidate:
    """How the cell's requests were drafted for; `whole` has the nodes of each deployment's full draft."""
    if cell.asked == 0:
        return NONE
    name = cell.deployment or "a server that does not say what it is"
    if name not in sections:
        raise ProfileError(f"{name}: not profiled here")
    section = sections[name]
    if section is None:
        raise ProfileError(f"{name}: what was profiled is no section of this release")
    if getattr(section, "draft_policy", None) == "measured":
        raise ProfileError(f"{name}: decides anew in every step (draft_policy: measured)")
    longest = section.longest_draft(cell.traffic.concurrency)
    chain = None if getattr(section, "dynamic_tree", None) else getattr(section, "draft_length", None)
    most = whole.get(cell.deployment) if chain is None else chain
    lengths = [length for length in (longest, cell.asked, most) if length is not None]
    if section.method == "none" or 0 in lengths:
        return NONE
    adaptive = bool(getattr(section, "adaptive", False))
    return Candidate(
        deployment=cell.deployment,
        method=section.method,
        draft_length=min(lengths, default=0),
        adaptive=adaptive,
    )


def _unknown(candidate: Candidate) -> str:
    length = f"{'up to ' if candidate.adaptive else ''}{candidate.draft_length}"
    return f"{candidate.deployment}, {length}: profiles do not hold what decides its drafts"
