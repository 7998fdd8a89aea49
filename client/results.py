"""What comes back from a generation: chunks while it runs, one result at its end.

Times ending in ``_ns`` are integers in nanoseconds. The server's are Triton's (`*_time_ns` outputs, the
server's steady clock) and the client's are :func:`time.perf_counter_ns`; differences within one side mean
something, across sides nothing. A figure that the server did not report is None, never a made-up zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One streamed piece of output, what a decode step added: with speculation, several tokens."""

    text: str
    """New text; the texts of all chunks, joined, are the result's text. Empty for token-level streams."""
    tokens: tuple[int, ...] | None
    """New token ids; None where the server does not return `output_ids`."""
    log_probs: tuple[float, ...] | None
    """Natural log-probabilities of `tokens`, if asked for."""
    received_ns: int
    """When the client had this chunk (:func:`time.perf_counter_ns`)."""


@dataclass(frozen=True, slots=True)
class Timings:
    """When things happened to one request, on the server and at the client."""

    sent_ns: int
    """Client: just before the request was sent."""
    first_chunk_ns: int | None
    """Client: when the first output arrived; None if there was none."""
    last_chunk_ns: int | None
    """Client: when the last output arrived."""
    arrival_ns: int | None = None
    """Server: when the engine received the request."""
    first_scheduled_ns: int | None = None
    """Server: when the engine first worked on it."""
    first_token_ns: int | None = None
    """Server: when its first token was known."""
    last_token_ns: int | None = None
    """Server: when its last token was known."""

    @property
    def time_to_first_chunk(self) -> float | None:
        """Seconds from sending to the first output at the client: TTFT as genai-perf and AIPerf define it."""
        return _seconds(self.sent_ns, self.first_chunk_ns)

    @property
    def latency(self) -> float | None:
        """Seconds from sending to the last output, at the client."""
        return _seconds(self.sent_ns, self.last_chunk_ns)

    @property
    def queue_time(self) -> float | None:
        """Seconds that the request waited on the server before the engine began with it."""
        return _seconds(self.arrival_ns, self.first_scheduled_ns)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What speculation did for one request."""

    draft_tokens: int
    """Tokens that the speculator proposed and the target verified."""
    accepted_tokens: int
    """Those of them that the target accepted."""
    output_tokens: int
    """Tokens the request generated."""

    @property
    def rate(self) -> float | None:
        """Accepted / proposed draft tokens; None if nothing was proposed."""
        return self.accepted_tokens / self.draft_tokens if self.draft_tokens else None

    @property
    def length(self) -> float | None:
        """Tokens per target step, 1.0 without speculation; None if the request generated nothing.

        Each target step emits the draft tokens it accepts and one of its own, so a request of n tokens of
        which `a` were accepted took n - a steps. A request cut by its token limit or a stop word inside
        accepted tokens has no token of its own in its last step; that step is counted as one.
        """
        if not self.output_tokens:
            return None
        return self.output_tokens / max(1, self.output_tokens - self.accepted_tokens)


@dataclass(frozen=True, slots=True)
class KvCacheUse:
    """Blocks of the KV cache that one request held."""

    reused_blocks: int
    """Those that were found filled by earlier requests, so that this part of the prompt was not computed. Where
    `tensorrt_llm_bls` drafts, each of a request's calls counts what it finds, the request's own rows too."""
    total_blocks: int
    """All of them, those for its output included."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a server says about one of its models."""

    inputs: frozenset[str]
    """The inputs that it takes."""
    parameters: Mapping[str, str]
    """Its parameters in `config.pbtxt`; repositories of the kit say there which deployment they are
    (`drafthouse_deployment`, `drafthouse_sha256`)."""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A finished generation."""

    request_id: str
    """The id under which the server's log knows the request."""
    text: str
    """Generated text, without the prompt. Empty for token-level requests."""
    tokens: tuple[int, ...] | None
    """Generated token ids; None where the server does not return them."""
    log_probs: tuple[float, ...] | None
    """Natural log-probability of each token, if asked for."""
    finish_reason: FinishReason | None
    """``"length"``: `max_tokens` reached; ``"stop"``: end token or stop string; ``"cancelled"``: ended
    early, by the caller or an error, and the rest of this result is what had arrived; None: the server did
    not count tokens."""
    num_input_tokens: int | None
    """Tokens of the prompt."""
    num_output_tokens: int | None
    """Tokens generated."""
    timings: Timings
    acceptance: Acceptance | None
    """None where the server does not report speculation (or the request did not end)."""
    kv_cache: KvCacheUse | None
    """None where the server does not report it (or the request did not end)."""


def _seconds(start_ns: int | None, end_ns: int | None) -> float | None:
    return None if start_ns is None or end_ns is None else (end_ns - start_ns) / 1e9
