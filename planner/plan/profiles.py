"""Reads what `drafthouse profile` wrote, and checks that it is about this deployment on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from deployments.files.reading import read_json_object
from deployments.spec import DeploymentSpec
from engine.control.errors import ProfileError
from engine.fingerprint import Fingerprint, drafter_differences, drafter_identity
from planner.profile.records import RequestRecord, load_records

PROFILES = Path("runs/profile")


@dataclass(frozen=True)
class Profile:
    """One deployment's measurements.

    Attributes:
        name: of the deployment.
        speculation: the section that was profiled.
        fingerprint: what they belong to.
        drafter: what decides the drafts that were profiled.
        records: of all temperatures.
        cost: `verify`, `draft` and `read`, points as `engine.control.table.CostTable` takes them.
        buckets: numbers of tokens that steps are padded to.
        chunks: prompt tokens that a step reads beside requests that decode, and where none does.
        prompt_tokens: of its prompts, on average.
        serving: loads that the service was measured under without speculation: `concurrency`, `prompt_tokens` and
            `output_tokens` on average, and `tokens_per_second` of each round; none: the engine alone was measured.
    """

    name: str
    speculation: Mapping[str, Any]
    fingerprint: Fingerprint
    drafter: Mapping[str, Any]
    records: Sequence[RequestRecord]
    cost: Mapping[str, Sequence[Mapping[str, Any]]]
    buckets: Sequence[int]
    chunks: tuple[int, int]
    prompt_tokens: float
    serving: Sequence[Mapping[str, Any]] = ()

    @property
    def drafts_chains(self) -> bool:
        """Whether no recorded draft had branches."""
        return all(
            count < 2 for record in self.records for draft in record.drafts for count in draft.children
        )

    def at(self, temperature: float) -> list[RequestRecord]:
        """Records of one temperature.

        Raises:
            ProfileError: it was not profiled.
        """
        found = [record for record in self.records if record.temperature == temperature]
        if not found:
            known = ", ".join(
                f"{value:g}" for value in sorted({record.temperature for record in self.records})
            )
            raise ProfileError(f"it has no records of temperature {temperature:g}, only of {known or 'none'}")
        return found


class _Point(BaseModel):
    context: NonNegativeInt
    batch: PositiveInt
    tokens: PositiveInt
    ms: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class _Costs(BaseModel):
    verify: list[_Point] = Field(min_length=1)
    draft: list[_Point]
    read: list[_Point] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_the_same_rounds(self) -> _Costs:
        points = [*self.verify, *self.draft, *self.read]
        rounds = {len(point.ms) for point in points}
        if len(rounds) != 1 or rounds == {0}:
            raise ValueError("points have figures of different rounds, or none")
        if not all(value for point in self.verify for value in point.ms):
            raise ValueError("a step takes no time")
        return self


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Load(BaseModel):
    concurrency: PositiveInt
    prompt_tokens: _Positive
    output_tokens: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    tokens_per_second: list[_Positive] = Field(min_length=1)


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow")

    method: str


class _Written(BaseModel):
    """What a plan needs of `profile.json`."""

    deployment: str
    speculation: _Section
    fingerprint: Fingerprint
    drafter: dict[str, Any]
    cost: _Costs
    buckets: list[PositiveInt]
    chunks: tuple[PositiveInt, PositiveInt]
    prompt_tokens: _Positive
    serving: list[_Load] = []


def read_profile(directory: Path) -> Profile:
    """A profile.

    Raises:
        ProfileError: it is missing, damaged, of an earlier release, or of another deployment than the directory.
    """
    path = directory / "profile.json"
    content = read_json_object(path, ProfileError)
    if content.get("cost") == {}:
        raise ProfileError(f"{path} has no costs")
    try:
        found = _Written.model_validate(content)
        records = load_records(directory / "records.jsonl")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ProfileError(f"{path} is damaged or of another release: {where}: {first['msg']}") from None
    except FileNotFoundError as error:
        raise ProfileError(f"{error.filename} is missing") from None
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} is damaged or of another release: {error}") from None
    if found.deployment != directory.name:
        raise ProfileError(f"{path} is a copy of that of {found.deployment}")
    return Profile(
        name=found.deployment,
        speculation=found.speculation.model_dump(),
        fingerprint=found.fingerprint,
        drafter=found.drafter,
        records=records,
        cost=found.cost.model_dump(),
        buckets=found.buckets,
        chunks=found.chunks,
        prompt_tokens=found.prompt_tokens,
        serving=[load.model_dump() for load in found.serving],
    )


def profile_of(spec: DeploymentSpec, spec_path: Path) -> Profile:
    """The profile of a deployment, if it belongs to it as it is here and now.

    Raises:
        ProfileError: there is none, or one of another model, drafter, machine or kit; says what to run.
    """
    remedy = f"run `drafthouse profile {spec_path}`"
    try:
        profile = read_profile(PROFILES / spec.name)
    except ProfileError as error:
        raise ProfileError(f"no profile of {spec.name}: {error}; {remedy}") from None
    differences = profile.fingerprint.differences(Fingerprint.of(spec))
    differences += drafter_differences(profile.drafter, drafter_identity(spec.speculation))
    if differences:
        raise ProfileError(
            f"the profile of {spec.name} is of something else: {'; '.join(differences)}; {remedy}"
        )
    return profile


def profiles_beside(first: Profile) -> tuple[list[Profile], list[str]]:
    """Other deployments' profiles of the same target on the same machine, and why the rest are left out."""
    found, left_out = [], []
    for path in sorted(PROFILES.glob("*/profile.json")):
        if path.parent.name == first.name:
            continue
        try:
            other = read_profile(path.parent)
        except ProfileError as error:
            left_out.append(f"{path.parent.name}: {error}")
            continue
        differences = other.fingerprint.differences(first.fingerprint)
        if differences:
            left_out.append(f"{other.name}: {'; '.join(differences)}")
        else:
            found.append(other)
    return found, left_out
