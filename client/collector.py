"""Turns the responses of one request into chunks and, at the end, into its result."""

from __future__ import annotations

from client.contract import Outputs, Request, read_outputs
from client.results import Acceptance, Chunk, FinishReason, GenerationResult, KvCacheUse, Timings


class Collector:
    """The state of one generation as seen by the client."""

    def __init__(self, request: Request, sent_ns: int) -> None:
        self._request = request
        self._wants_log_probs = request.options.get("return_log_probs", False)
        self._sent_ns = sent_ns
        self._chunks: list[Chunk] = []
        self._figures: dict[str, int] = {}
        self._has_tokens = False

    def add(self, outputs: Outputs, received_ns: int) -> Chunk | None:
        """Take one response in; the chunk it makes, or None if it carries no output, as the last may."""
        update = read_outputs(outputs)
        self._figures.update(update.figures)
        self._has_tokens = self._has_tokens or update.tokens is not None
        if not update.text and not update.tokens:
            return None
        # Servers return zeros as log-probabilities that nobody asked for.
        log_probs = update.log_probs if self._wants_log_probs else None
        chunk = Chunk(update.text, update.tokens, log_probs, received_ns)
        self._chunks.append(chunk)
        return chunk

    def result(self, *, complete: bool) -> GenerationResult:
        """The generation so far; `complete` says whether the server ended it."""
        tokens = self._tokens()
        # Counted tokens are certain; the server's figure may be one chunk's only until the last response is
        # in.
        count = self._figures.get("num_output_tokens") if tokens is None else len(tokens)
        return GenerationResult(
            request_id=self._request.request_id,
            text="".join(chunk.text for chunk in self._chunks),
            tokens=tokens,
            log_probs=self._log_probs(),
            finish_reason=self._finish_reason(count) if complete else "cancelled",
            num_input_tokens=self._figures.get("num_input_tokens"),
            num_output_tokens=count,
            timings=self._timings(),
            acceptance=self._acceptance(count) if complete else None,
            kv_cache=self._kv_cache() if complete else None,
        )

    def _tokens(self) -> tuple[int, ...] | None:
        if not self._has_tokens:
            return None
        return tuple(token for chunk in self._chunks for token in chunk.tokens or ())

    def _log_probs(self) -> tuple[float, ...] | None:
        if not self._wants_log_probs or any(chunk.log_probs is None for chunk in self._chunks):
            return None
        return tuple(value for chunk in self._chunks for value in chunk.log_probs or ())

    def _finish_reason(self, count: int | None) -> FinishReason | None:
        """The contract has none, but a generation shorter than its limit met an end token or stop string."""
        if count is None:
            return None
        return "stop" if count < self._request.options["max_tokens"] else "length"

    def _timings(self) -> Timings:
        return Timings(
            sent_ns=self._sent_ns,
            first_chunk_ns=self._chunks[0].received_ns if self._chunks else None,
            last_chunk_ns=self._chunks[-1].received_ns if self._chunks else None,
            arrival_ns=self._time("arrival_time_ns"),
            first_scheduled_ns=self._time("first_scheduled_time_ns"),
            first_token_ns=self._time("first_token_time_ns"),
            last_token_ns=self._time("last_token_time_ns"),
        )

    def _time(self, name: str) -> int | None:
        """A time of the server, which says 0 for what has not happened, as the first token of an empty answer."""
        return self._figures.get(name) or None

    def _kv_cache(self) -> KvCacheUse | None:
        reused = self._figures.get("kv_cache_reused_blocks")
        total = self._figures.get("kv_cache_alloc_total_blocks")
        # Servers fill in zeros for figures that they were not asked for; whatever ran held a block.
        return KvCacheUse(reused, total) if reused is not None and total else None

    def _acceptance(self, count: int | None) -> Acceptance | None:
        drafted = self._figures.get("total_draft_tokens")
        accepted = self._figures.get("total_accepted_draft_tokens")
        if drafted is None or accepted is None or count is None:
            return None
        return Acceptance(drafted, accepted, count)
