"""What a sweep measures: address, prompts, arms, load points, rounds.

An *arm* is one configuration under comparison, told apart by what its requests ask for or by the server that they go
to; the first arm is the baseline that speed-ups are relative to. A *load point* is either a number of users that each
keep one request running (closed loop) or a rate of Poisson arrivals (open loop). A *cell* is one arm at one load point
in one round. What the servers have in their prefix caches when a cell begins is part of the experiment
(:mod:`loadtest.servers`).

    SweepSettings(host="localhost:8001", concurrency=(1, 4), rounds=2, max_tokens=64)
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from deployments.places import KIT_PROMPTS

Protocol = Literal["grpc", "http"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Deployment(_Frozen):
    """Who is to answer: what a repository of the kit says about itself (`build.identity`)."""

    name: str
    spec: str
    """Hash of the spec's target, engine and speculation."""
    weights: str | None = None
    """Hash of the weights; None: not known here, and not compared."""


class Arm(_Frozen):
    """One configuration under comparison."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.+-]+$")
    """Name in tables, plots and file names."""
    num_draft_tokens: int | None = Field(default=None, ge=0)
    """Cap on draft tokens that each request asks for: 0: speculation off; None: the server's own."""
    host: str | None = None
    """host:port, where this arm has a server of its own; None: the sweep's."""
    metrics_url: str | None = None
    """Prometheus page of that server."""
    deployment: Deployment | None = None
    """Who has to answer there; None: the sweep's, or whoever does."""


class Slo(_Frozen):
    """Service level objectives, in milliseconds; a request is good if it meets all that are set (goodput)."""

    ttft: float | None = Field(default=None, gt=0)
    itl: float | None = Field(default=None, gt=0)
    tpot: float | None = Field(default=None, gt=0)
    latency: float | None = Field(default=None, gt=0)

    def limits(self) -> dict[str, float]:
        """The objectives that are set."""
        return {name: limit for name, limit in self if limit is not None}


class SweepSettings(_Frozen):
    """Everything that decides what a sweep sends, when, and how it is judged."""

    host: str = "localhost:8001"
    """host:port of the endpoint that `protocol` speaks to."""
    protocol: Protocol = "grpc"
    """grpc: KServe v2 ``ModelStreamInfer``; http: ``/generate_stream``."""
    model: str = "ensemble"
    deployment: Deployment | None = None
    """Who has to answer at `host`; None: whoever does."""
    metrics_url: str | None = "http://localhost:8002/metrics"
    """Triton's Prometheus page, for acceptance by position; None: not available."""

    prompts: Path = KIT_PROMPTS
    """JSONL file, in one of the shapes that :mod:`loadtest.prompts` reads."""
    categories: tuple[str, ...] = ()
    """Categories to use; empty: all in the file."""
    chat_template: Path | None = None
    """Directory in Hugging Face layout whose chat template wraps each prompt; None: prompts are sent bare."""
    cache: Literal["cold", "warm"] = "cold"
    """cold: no request finds its prompt in the server's prefix cache; warm: each finds it, read just before."""

    max_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_k: int | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)

    arms: tuple[Arm, ...] = (Arm(name="none", num_draft_tokens=0), Arm(name="speculative"))
    """The first is the baseline."""
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Closed-loop load points: users that each send their next request when the last one has ended."""
    request_rates: tuple[float, ...] = ()
    """Open-loop load points: requests per second, arriving as a Poisson process."""
    rounds: int = Field(default=3, ge=1)
    """How often each cell is measured; the order of arms turns round from one round to the next (ABBA)."""
    requests: int = Field(default=12, ge=1)
    """Measured requests in a cell, at least; 12 gives two of each kind of the bundled prompts."""
    requests_per_user: float = Field(default=2.0, gt=0)
    """Measured requests in a closed-loop cell for each user, at least."""
    arrival_seconds: float = Field(default=30.0, gt=0)
    """Measured requests in an open-loop cell: as many as arrive in this time on average, at least."""
    warmup_requests: int = Field(default=4, ge=1)
    """Requests of each arm before the first cell, never counted."""
    max_in_flight: int = Field(default=64, ge=1)
    """Open loop: most requests at a time. An arrival beyond it is sent late, and the report counts it."""
    deadline: float = Field(default=300.0, gt=0)
    """Seconds after which a request counts as failed."""
    processes: int = Field(default=1, ge=1)
    """Locust processes to spread the users over; one drives about two thousand chunks a second."""
    seed: int = Field(default=0, ge=0)
    """Seeds arrival times and the sampling of requests."""

    slo: Slo = Slo()
    subject: dict[str, str] = {}
    """What is being measured, for the report (model, precision, speculator, ...).

    Part of the settings' digest.
    """

    @field_validator("prompts", "chat_template")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """Locust runs in another folder."""
        return None if path is None else path.resolve()

    @field_validator("concurrency")
    @classmethod
    def _positive_users(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(value < 1 for value in values) or len(set(values)) != len(values):
            raise ValueError(f"concurrency must be different whole numbers of 1 or more, not {list(values)}")
        return values

    @field_validator("request_rates")
    @classmethod
    def _positive_rates(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < value < 1e6 for value in values) or len(set(values)) != len(values):
            raise ValueError(f"request_rates must be different rates above 0 per second, not {list(values)}")
        return values

    @model_validator(mode="after")
    def _something_to_compare(self) -> SweepSettings:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"arms need at least one entry and different names, found {names}")
        if not self.concurrency and not self.request_rates:
            raise ValueError("give at least one load point in concurrency or request_rates")
        return self

    @property
    def baseline(self) -> Arm:
        """The arm that speed-ups are relative to."""
        return self.arms[0]

    def digest(self) -> str:
        """Short hash of all that decides what is sent, the prompts' content included.

        Records of one sweep share it. The objectives are left out, since they only judge what was recorded.
        """
        content = hashlib.sha256(self.prompts.read_bytes()).hexdigest()
        asked = self.model_dump(mode="json", exclude={"prompts", "slo"})
        document = json.dumps([asked, content], sort_keys=True)
        return hashlib.sha256(document.encode()).hexdigest()[:16]
