"""The schema of report.json, field by field.

``Report.model_json_schema()`` gives it as a JSON schema with these descriptions. Times are in milliseconds,
rates per second; null means that the figure could not be measured, never zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Distribution(_Entry):
    """One kind of latency over the completed measured requests of a load point, all rounds together."""

    count: int
    """Values; for `icl` the gaps between chunks, otherwise requests."""
    mean: float
    p50: float
    p90: float
    p99: float


class PointReport(_Entry):
    """One arm at one load point."""

    arm: str
    load: str
    """``c8``: 8 users; ``2.5rps``: 2.5 arrivals per second."""
    kind: Literal["closed", "open"]
    level: float
    """Users or arrivals per second."""
    rounds: int
    """Finished rounds."""
    requests: int
    """Measured requests."""
    failures: int
    """Those of them that failed."""
    late_arrivals: int
    """Open loop: measured requests sent more than 50 ms late (too many in flight, or the client busy)."""
    output_tokens_per_second: float | None
    """Tokens delivered in the measured windows / length of the windows, all rounds together."""
    output_tokens_per_second_by_round: list[float]
    """The same for each round, in order: its spread is the machine's drift and the prompts' variety."""
    requests_per_second: float | None
    """Output tokens per second / mean output tokens of the measured requests."""
    output_tokens_mean: float | None
    """Mean output tokens of the completed measured requests."""
    goodput_share: float | None
    """Share of measured requests that met all objectives (a failed one does not); null without objectives."""
    goodput: float | None
    """Requests per second x that share."""
    acceptance_length: float | None
    """Tokens per target step, 1.0 without speculation."""
    acceptance_rate: float | None
    """Accepted / proposed draft tokens; null where nothing was proposed."""
    ttft: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    icl: Distribution | None
    latency: Distribution | None
    queue: Distribution | None


class SpeedUp(_Entry):
    """Output token throughput of an arm relative to the baseline at the same concurrency.

    There is none for an open loop, where arrivals set the throughput and speculation shows in latency.
    """

    arm: str
    load: str
    level: float
    """Users."""
    value: float
    """Ratio of output tokens per second, over the rounds that both arms finished."""
    low: float
    high: float
    """95 % interval (with `low`) of a paired bootstrap over rounds and, within rounds, requests.

    Approximate above one user, since requests that run together are not independent.
    """
    by_round: list[float]
    """The ratio in each round."""
    ceiling: float | None
    """The arm's acceptance length: what the speed-up would be if verifying and drafting cost nothing."""


class CategoryReport(_Entry):
    """One arm on one kind of prompt."""

    arm: str
    category: str
    requests: int
    """Completed measured requests, all load points together."""
    acceptance_length: float | None
    acceptance_rate: float | None
    tokens_per_second: float | None
    """At the lowest concurrency: mean over requests of output tokens / latency, as Spec-Bench defines it."""
    speedup: float | None
    """Ratio of that mean to the baseline's; null for the baseline."""


class ArmReport(_Entry):
    """One arm over everything that was sent."""

    arm: str
    num_draft_tokens: int | None
    """The cap its requests ask for; null: the server's own."""
    acceptance_length: float | None
    acceptance_rate: float | None
    mean_category_speedup: float | None
    """Mean of the categories' speed-ups at the lowest concurrency; null for the baseline."""
    overall_speedup: float | None
    """Spec-Bench's overall speed-up: ratio of the mean tokens per second at the lowest concurrency."""


class PositionReport(_Entry):
    """Acceptance at one position of the draft, from Triton's counters, lead-in and fillers included."""

    arm: str
    position: int
    """1 is the first draft token."""
    drafted: int
    accepted: int
    rate: float
    """Accepted / drafted."""


class FailureReport(_Entry):
    """Requests of one arm at one load that failed in the same way, whatever their role."""

    arm: str
    load: str
    error: str
    """Class of the error."""
    count: int
    example: str
    """One of the messages."""


class Report(_Entry):
    """Everything that was found."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    """Hash of settings and prompts."""
    complete: bool
    """False if the sweep was interrupted and cells are missing."""
    cells_finished: int
    cells_planned: int
    started: str | None
    ended: str | None
    """ISO 8601, UTC: opening of the first cell, closing of the last."""
    baseline: str
    """The arm that speed-ups are relative to."""
    lowest_load: str | None
    """The closed-loop load point of `tokens_per_second` and `speedup` in `categories`.

    Null if there is none.
    """
    arms: list[ArmReport]
    points: list[PointReport]
    speedups: list[SpeedUp]
    categories: list[CategoryReport]
    positions: list[PositionReport]
    """Empty if Triton's counters could not be read."""
    failures: list[FailureReport]
    undrained_cells: list[str]
    """Cells after which the server still reported running requests, which may have slowed the next cell."""
    settings: dict[str, Any]
    """Exactly what was asked for (:class:`loadtest.settings.SweepSettings`)."""
    provenance: dict[str, Any]
    """Versions, host, commit, command line."""
