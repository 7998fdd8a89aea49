"""`plan.json`: what to draft with at which concurrency and context, and what that is predicted to bring.

Written by `drafthouse plan`, and readable without it. Example::

    plan = load_plan(Path("runs/plan/smollm2-anpd/plan.json"))
    plan.choice(concurrency=3, context=700).draft_length
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from engine.fingerprint import Fingerprint
from engine.manifest import EngineError


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
        candidates: all of them, plain decoding first.
    """

    concurrency: int
    prompt_tokens: float
    output_tokens: float
    context: float
    best: Outlook
    candidates: list[Outlook]


class Plan(_Part):
    """The whole file.

    Attributes:
        speculation: the `speculation` section of each deployment that candidates name.
        cells: every concurrency at every context.
    """

    format: Literal[1] = 1
    deployment: str
    fingerprint: Fingerprint
    objective: Objective
    temperature: float
    speculation: dict[str, dict[str, Any]]
    cells: list[Cell]
    provenance: dict[str, Any] = {}

    def choice(self, concurrency: int, context: float) -> Candidate:
        """What the plan says for so many requests: that of the next larger concurrency, at the nearest context."""
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
