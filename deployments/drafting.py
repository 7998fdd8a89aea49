"""What the spec's `speculation` section has whatever the method is: when to draft, how long, and who beside it."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from deployments.enhancer import SelfLookupEnhancer, check_chain
from deployments.section import Section


class AcceptanceGate(Section):
    """Speculation is switched off for good when it accepts too little.

    Line A counts completed requests and compares the accepted length of a step; line B counts decoding
    iterations and compares the acceptance rate. So only one of the two thresholds makes sense for a line.
    """

    window: PositiveInt = Field(description="Requests (line A) or iterations (line B) that are averaged.")
    min_length: float | None = Field(None, ge=0, description="Line A: least mean accepted length.")
    min_rate: float | None = Field(None, ge=0, le=1, description="Line B: least acceptance rate.")

    @model_validator(mode="after")
    def _one_threshold(self) -> "AcceptanceGate":
        if (self.min_length is None) == (self.min_rate is None):
            raise ValueError("give min_length (line A) or min_rate (line B), one of them")
        return self


class Speculation(Section):
    """What every method has: when to draft less or not at all."""

    max_concurrency: PositiveInt | None = Field(
        None, description="Largest batch that still speculates; above it tokens are decoded one by one."
    )
    draft_length_schedule: dict[PositiveInt, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        min_length=1,
        description="Draft length by batch size: each key is the largest batch its length is used for; "
        "beyond the last key nothing is drafted.",
    )
    draft_policy: Literal["scheduled", "measured"] = Field(
        "scheduled",
        description="Embedded engine: what decides how much is drafted. scheduled: max_concurrency or "
        "draft_length_schedule, and adaptive. measured: in every step what is worth its time, nothing included, by "
        "costs that are measured when the engine starts, in less than ten seconds, and by what was accepted; needs no "
        "plan.",
    )
    acceptance_gate: AcceptanceGate | None = Field(None, description="When to give speculation up.")
    adaptive: bool = Field(
        True,
        description="Embedded engine and `tensorrt_llm_bls`: draft less for a request whose drafts are rejected, or, "
        "where the drafter tells how likely its chain is, only as long as it is likely; off: always the most.",
    )
    drafted_by: Literal["engine", "bls"] = Field(
        "engine",
        description="Embedded engine: who drafts, the engine itself or `tensorrt_llm_bls` in front of it, as in "
        "front of TensorRT-LLM's engines.",
    )

    @model_validator(mode="after")
    def _one_policy(self) -> "Speculation":
        if self.max_concurrency is not None and self.draft_length_schedule is not None:
            raise ValueError("give max_concurrency or draft_length_schedule, not both")
        if self.draft_policy == "measured" and (self.max_concurrency or self.draft_length_schedule):
            raise ValueError(
                "draft_policy: measured decides itself how much is drafted; leave out max_concurrency and "
                "draft_length_schedule, or draft_policy"
            )
        schedule = self.draft_length_schedule
        key, longest = "draft_length", getattr(self, "draft_length", None)
        if self.chain_length is not None:
            key, longest = "chain_length", self.chain_length
        if schedule is not None and longest is not None:
            first = schedule[min(schedule)]
            if first != longest or max(schedule.values()) > longest:
                raise ValueError(
                    f"draft_length_schedule must give its smallest batch the {key} {longest} and none more"
                )
        return self

    @model_validator(mode="after")
    def _chain_of_drafters(self) -> "Speculation":
        if self.chain_length is not None:
            check_chain(self, self.chain_length)
        return self

    @property
    def chain_length(self) -> int | None:
        """Most tokens of a draft that a lookup and the drafter make in turns; None: they take no turns."""
        lookup: SelfLookupEnhancer | None = getattr(self, "suffix_automaton", None)
        return None if lookup is None else lookup.chain_length

    def longest_draft(self, batch_size: int) -> int | None:
        """Most tokens to draft for a request while `batch_size` run; None: what the method has."""
        if self.max_concurrency is not None:
            return None if batch_size <= self.max_concurrency else 0
        if self.draft_length_schedule is None:
            return None
        bounds = [bound for bound in self.draft_length_schedule if batch_size <= bound]
        return self.draft_length_schedule[min(bounds)] if bounds else 0
