"""What the engine tells a caller about a request, and what it counted on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "verified", "cancelled", "error"]
"""Why a request ended; "verified": the draft that came with it has been verified."""


@dataclass(slots=True)
class RequestMetrics:
    """Figures of one request; times are nanoseconds of `time.time_ns`, 0 until they have happened.

    `steps` counts the target steps that emitted tokens, the one that ended the prompt included, so the
    acceptance length is `num_output_tokens / steps`.
    """

    num_input_tokens: int
    arrival_ns: int
    num_output_tokens: int = 0
    total_draft_tokens: int = 0
    total_accepted_draft_tokens: int = 0
    steps: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    last_token_ns: int = 0
    kv_new_blocks: int = 0
    kv_reused_blocks: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted over drafted tokens; None if nothing was drafted."""
        return self.total_accepted_draft_tokens / self.total_draft_tokens if self.total_draft_tokens else None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """Tokens that a step emitted for a request; the last output of a request has a finish reason.

    `log_probs` are natural logarithms under the target at temperature 1, one a token, if they were asked for.
    `error` says why the reason is "error". `text_cut`: how many characters at the end of the last token's text
    belong to the stop word that ended the output.
    """

    request_id: int
    tokens: tuple[int, ...]
    metrics: RequestMetrics
    log_probs: tuple[float, ...] = ()
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    text_cut: int = 0


OutputCallback = Callable[[RequestOutput], None]


@dataclass(slots=True)
class EngineStatistics:
    """Counters since the engine started, and gauges of the last step. Blocks kept for reuse do not count as used.

    `drafted_by_position[d]` counts the steps that proposed a token at depth d + 1 of the draft,
    `accepted_by_position[d]` those in which it was accepted.
    """

    max_draft_length: int
    steps: int = 0
    emitted_tokens: int = 0
    request_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    step_seconds: float = 0.0
    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    used_blocks: int = 0
    reused_blocks: int = 0

    def __post_init__(self) -> None:
        self.drafted_by_position = [0] * self.max_draft_length
        self.accepted_by_position = [0] * self.max_draft_length

    @property
    def active(self) -> int:
        """Requests that wait or run."""
        return self.waiting + self.prefilling + self.decoding

    @property
    def tokens_per_step(self) -> float | None:
        """Acceptance length since the engine started; None before the first token."""
        return self.emitted_tokens / self.request_steps if self.request_steps else None

    def count_draft(self, nodes: int, drafted_depth: int, accepted: int) -> None:
        """Add one verified draft: its size and depth, and how many tokens of its path were accepted."""
        self.drafted_tokens += nodes
        self.accepted_tokens += accepted
        for position in range(drafted_depth):
            self.drafted_by_position[position] += 1
        for position in range(accepted):
            self.accepted_by_position[position] += 1
