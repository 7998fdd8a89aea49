"""The schema of report.json, field by field.

``Report.model_json_schema()`` gives it as a JSON schema with these descriptions. Times are in milliseconds,
rates per second; null means that the figure could not be measured, never zero.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 2

Verdict = Literal["faster", "slower", "not shown"]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Distribution(_Entry):
    """One kind of latency over the completed measured requests of a load point, all rounds together."""

    count: int
    """Values; for `icl` the gaps between chunks, otherwise requests."""
    mean: float
    """Arithmetic mean, in milliseconds."""
    p50: float
    """Median, in milliseconds."""
    p90: float
    """90th percentile, in milliseconds, linearly interpolated as numpy does."""
    p99: float
    """99th percentile."""


class PointReport(_Entry):
    """One arm at one load point."""

    arm: str
    """Name of the arm."""
    load: str
    """``c8``: 8 users; ``2.5rps``: 2.5 arrivals per second."""
    kind: Literal["closed", "open"]
    """Closed or open loop."""
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
    cache_hits: float | None
    """Share of its requests' KV cache blocks that were found filled; null where the server does not tell.

    Where `tensorrt_llm_bls` drafts, a request's own rows, which each of its calls finds, count too.
    """
    ttft: Distribution | None
    """Time to the first output."""
    itl: Distribution | None
    """Time per token after the first chunk."""
    tpot: Distribution | None
    """Time per token after the first token."""
    icl: Distribution | None
    """Gaps between chunks."""
    latency: Distribution | None
    """Time to the last output."""
    queue: Distribution | None
    """Wait on the server before its first step, by the server's clock."""


class Ratio(_Entry):
    """Output tokens per second of an arm relative to the baseline's, and how sure that is."""

    value: float
    """The ratio, over the rounds that both arms finished."""
    low: float | None
    """Lower end of the 95 % interval (:mod:`loadtest.comparison`); null where nothing was repeated."""
    high: float | None
    """Its upper end. Approximate above one user, since requests that run together are not independent."""
    verdict: Verdict
    """Whether the whole interval lies on one side of 1; "not shown" also where there is none."""


class SpeedUp(Ratio):
    """The ratio at one concurrency.

    There is none for an open loop, where arrivals set the throughput and speculation shows in latency.
    """

    arm: str
    """Name of the arm."""
    load: str
    """As in `points`."""
    level: float
    """Users."""
    by_round: list[float]
    """The ratio in each round."""
    ceiling: float | None
    """The arm's acceptance length: what the speed-up would be if verifying and drafting cost nothing."""


class CategoryReport(_Entry):
    """One arm on one kind of prompt."""

    arm: str
    """Name of the arm."""
    category: str
    """Kind of prompt."""
    requests: int
    """Completed measured requests, all load points together."""
    acceptance_length: float | None
    """Tokens per target step, 1.0 without speculation."""
    acceptance_rate: float | None
    """Accepted / proposed draft tokens; null where nothing was proposed."""
    tokens_per_second: float | None
    """At the lowest concurrency: output tokens of these requests / the seconds that they took."""
    speedup: Ratio | None
    """That rate relative to the baseline's, from the requests that both completed; null for the baseline."""


class ArmReport(_Entry):
    """One arm over everything that was sent."""

    arm: str
    """Name of the arm."""
    num_draft_tokens: int | None
    """The cap its requests ask for; null: the server's own."""
    host: str | None
    """host:port of its server; null where nobody was asked yet, and so in what follows."""
    deployment: str | None
    """Name of the deployment that the server says it is; null if it does not say."""
    spec: str | None
    """Hash of that deployment's target, engine and speculation."""
    weights: str | None
    """Hash of the weights that it was built from."""
    cache: str | None
    """What its prefix cache had of a prompt, and how that was reached (:mod:`loadtest.servers`)."""
    acceptance_length: float | None
    """Tokens per target step, 1.0 without speculation."""
    acceptance_rate: float | None
    """Accepted / proposed draft tokens; null where nothing was proposed."""


class PositionReport(_Entry):
    """Acceptance at one position of the draft, from Triton's counters, lead-in and fillers included."""

    arm: str
    """Name of the arm."""
    position: int
    """1 is the first draft token."""
    drafted: int
    """Tokens proposed there."""
    accepted: int
    """Those of them that the target accepted."""
    rate: float
    """Accepted / drafted."""


class FailureReport(_Entry):
    """Requests of one arm at one load that failed in the same way, whatever their role."""

    arm: str
    """Name of the arm."""
    load: str
    """As in `points`."""
    error: str
    """Class of the error."""
    count: int
    """Requests."""
    example: str
    """One of the messages."""


class Report(_Entry):
    """Everything that was found."""

    schema_version: int = SCHEMA_VERSION
    """Raised when a field changes its meaning or goes."""
    digest: str
    """Hash of settings and prompts."""
    complete: bool
    """False if the sweep was interrupted and cells are missing."""
    cells_finished: int
    """Cells measured, warm-up not counted."""
    cells_planned: int
    """Cells the settings ask for."""
    started: str | None
    """When the first cell was opened (ISO 8601, UTC)."""
    ended: str | None
    """When the last cell was closed."""
    baseline: str
    """The arm that speed-ups are relative to."""
    lowest_load: str | None
    """The closed-loop load point of `tokens_per_second` and `speedup` in `categories`.

    Null if there is none.
    """
    arms: list[ArmReport]
    """The baseline first."""
    points: list[PointReport]
    """By load point, and in each by arm."""
    speedups: list[SpeedUp]
    """Every other arm at every concurrency that it and the baseline have finished."""
    categories: list[CategoryReport]
    """By kind of prompt, and in each by arm."""
    positions: list[PositionReport]
    """Empty if Triton's counters could not be read."""
    failures: list[FailureReport]
    """Empty if every request was answered."""
    doubts: list[str]
    """What speaks against the figures, in sentences; empty if nothing was found."""
    settings: dict[str, Any]
    """Exactly what was asked for (:class:`loadtest.settings.SweepSettings`)."""
    provenance: dict[str, Any]
    """Versions, host, commit, command line."""
