"""`plan.json`: what to draft with at which concurrency and context, and what that is predicted to bring.

Written by `drafthouse plan`, and readable without it. Example::

    plan = load_plan(Path("runs/plan/smollm2-anpd/plan.json"))
    plan.choice(concurrency=3, context=700).draft_length
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from engine.fingerprint import Fingerprint
from engine.manifest import EngineError

_DISPENSABLE = 0.01  # of what a load gets: a deployment that brings no more is not served


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Candidate(_Part):
    """A way of drafting.

    Attributes:
        deployment: whose speculator it is; None: nobody's.
        method: "none" for plain decoding.
        draft_length: most nodes of a draft; of a tree, those that come first.
        adaptive: whether lengths follow what was accepted, up to that.
    """

    deployment: str | None
    method: str
    draft_length: int
    adaptive: bool


class Estimate(_Part):
    """A figure and its 90 % interval."""

    value: float
    low: float
    high: float


class Objective(_Part):
    """What is to be best: tokens a second, the latency of the slowest tenth, or tokens a second within limits."""

    kind: Literal["throughput", "latency", "goodput"] = "throughput"
    ttft_ms: float | None = None
    tpot_ms: float | None = None


class Outlook(_Part):
    """What a candidate is predicted to bring.

    Attributes:
        tokens_per_step: of a request, in decoding.
        step_ms, draft_ms: of a decoding step of all requests: verifying, and drafting before.
        gain: tokens a second in relation to none.
        worth: by the objective.
    """

    candidate: Candidate
    tokens_per_step: Estimate
    step_ms: Estimate
    draft_ms: Estimate
    tokens_per_second: Estimate
    ttft_ms: Estimate
    tpot_ms: Estimate
    latency_ms: Estimate
    gain: Estimate
    worth: float


class Cell(_Part):
    """One load.

    Attributes:
        context: tokens before a decoding step, on average.
        cached_tokens: of a prompt, those that the service has read before.
        candidates: all of them, plain decoding first.
    """

    concurrency: int
    prompt_tokens: float
    output_tokens: float
    context: float
    cached_tokens: float = 0.0
    best: Outlook
    candidates: list[Outlook]


class CostPoint(_Part):
    """Milliseconds of a step: medians of what was measured.

    Attributes:
        tokens: of each request; of drafts, nodes.
    """

    context: NonNegativeInt
    batch: PositiveInt
    tokens: PositiveInt
    ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Survival(_Part):
    """Which nodes were accepted of drafts behind tokens that had stood together before.

    Attributes:
        match: how many such tokens (`speculators.match`).
        tried: drafts that had a first node, a second, ...
        accepted: those in which it was on the accepted path.
    """

    match: NonNegativeInt
    tried: list[NonNegativeInt]
    accepted: list[NonNegativeInt]


class TreeSize(_Part):
    """The tree that brings most tokens a millisecond at a context and batch.

    Attributes:
        nodes, depth: it is the first `nodes` of `Trees.choices` on the first `depth` levels; 0: none pays.
        tokens_per_step: of a request.
        step_ms, draft_ms: of a step of the whole batch: verifying, and drafting before.
    """

    context: NonNegativeInt
    batch: PositiveInt
    nodes: NonNegativeInt
    depth: NonNegativeInt
    tokens_per_step: float
    step_ms: float
    draft_ms: float


class Trees(_Part):
    """Trees of a method whose tree can be named, each of which holds the smaller ones.

    Attributes:
        choices: paths of nodes by ranks, the most valuable first.
        acceptance: probability that each node is accepted.
        sizes: the best tree of every measured context and batch.
    """

    choices: Annotated[list[tuple[NonNegativeInt, ...]], Field(min_length=1)]
    acceptance: list[float]
    sizes: list[TreeSize]

    def tree(self, nodes: int, depth: int) -> list[tuple[int, ...]]:
        """Paths of one of them."""
        return [path for path in self.choices if len(path) <= depth][:nodes]


class PlannedDeployment(_Part):
    """What serving needs of a deployment that candidates name.

    Attributes:
        speculation: its section; where it names its tree, with the best one.
        drafter: what decides its drafts (`engine.fingerprint.drafter_identity`).
        draft_costs: of drafting, in relation to `Plan.verify_costs`; none where nothing is ever drafted.
        survival: of its drafts.
        trees: what its tree should be; None where it cannot be named.
    """

    speculation: dict[str, Any]
    drafter: dict[str, Any]
    draft_costs: list[CostPoint]
    survival: list[Survival]
    trees: Trees | None = None


class Plan(_Part):
    """The whole file.

    Attributes:
        deployments: those that candidates name.
        verify_costs: of the target's steps, every context, batch and size once.
        buckets: numbers of tokens that steps are padded to.
        cells: every concurrency at every context.
    """

    format: Literal[2] = 2
    deployment: str
    fingerprint: Fingerprint
    objective: Objective
    temperature: float
    deployments: dict[str, PlannedDeployment]
    verify_costs: list[CostPoint]
    buckets: list[PositiveInt]
    cells: Annotated[list[Cell], Field(min_length=1)]
    provenance: dict[str, Any] = {}

    @model_validator(mode="after")
    def _whole(self) -> Plan:
        points = {(point.context, point.batch, point.tokens) for point in self.verify_costs}
        axes = [set(values) for values in zip(*points, strict=True)]
        if not points or not len(self.verify_costs) == len(points) == math.prod(map(len, axes)):
            raise ValueError("verify_costs are not those of every context, batch and size, once")
        named = {cell.best.candidate.deployment for cell in self.cells} - {None}
        if missing := sorted(str(name) for name in named - self.deployments.keys()):
            raise ValueError(f"cells name {', '.join(missing)}, which deployments have not")
        return self

    @property
    def served(self) -> list[str]:
        """Deployments without which some load would get a hundredth less than it could; the others are not loaded.

        A drafter takes memory, and reads prompts along wherever it may be wanted.
        """
        best = {cell.best.candidate.deployment for cell in self.cells}
        kept = [name for name in self.deployments if name in best]
        while kept:
            lost = {name: self._lost(each for each in kept if each != name) for name in kept}
            least = min(kept, key=lambda name: lost[name])
            if lost[least] > _DISPENSABLE:
                break
            kept.remove(least)
        return kept

    def _lost(self, deployments: Iterable[str]) -> float:
        """What the load that loses most would lose with these deployments alone, as a share."""
        names = {None, *deployments}
        shares = [0.0]
        for cell in self.cells:
            left = max(each.worth for each in cell.candidates if each.candidate.deployment in names)
            shares.append((cell.best.worth - left) / abs(cell.best.worth) if cell.best.worth else 0.0)
        return max(shares)

    def choice(self, concurrency: int, context: float) -> Candidate:
        """What the plan says for a load: what it says for the next larger concurrency, at the nearest context."""
        levels = sorted({cell.concurrency for cell in self.cells})
        level = next((known for known in levels if known >= concurrency), levels[-1])
        here = [cell for cell in self.cells if cell.concurrency == level]
        return min(here, key=lambda cell: abs(cell.context - context)).best.candidate


def load_plan(path: Path) -> Plan:
    """Read a plan.

    Raises:
        EngineError: it is missing or damaged.
    """
    try:
        return Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); run `drafthouse plan`") from None
    except ValidationError:
        raise EngineError(f"{path} is damaged or of another release; run `drafthouse plan`") from None
