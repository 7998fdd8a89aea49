"""Which requests wait, which run, and what each contributes to a step.

Requests are admitted in the order in which they came, when a slot is free and the cache has blocks for all that they
can ever need; those that have begun in an earlier call go first. In a step every request that decodes takes part, and
prompts are read in chunks, the oldest first, as far as the step's share goes, so that nobody who decodes waits long.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.deadlines import late
from engine.errors import QueueFullError, RequestError
from engine.outputs import EngineStatistics
from engine.pace import Pace
from engine.prefix_cache import PrefixCache
from engine.request import GenerationRequest
from engine.runner import SHORTEST_CHUNK, SequenceInput
from engine.running import RunningRequest
from speculators.graphs import DrafterRows
from speculators.tree import EMPTY, TokenTree

# Tokens of a prompt that are read again for each one of an answer, so that it can be drafted for, and in any case.
# Reading a token takes about a sixth of decoding one, and a drafter saves a third of that.
_AGAIN, _AGAIN_AT_LEAST = 2, 256


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the engine takes on; see `deployments.engines.EmbeddedEngine` for the meaning of each.

    `max_draft_length` is that of drafts which come with requests.
    """

    max_batch_size: int = 16
    max_sequence_length: int = 2048
    max_queue_size: int = 64
    max_queue_seconds: float | None = None
    max_request_seconds: float | None = None
    prefill_chunk: int = 128
    idle_prefill_chunk: int = 256
    max_draft_length: int = 31
    kv_cache_reuse: bool = True

    def __post_init__(self) -> None:
        for name in ("prefill_chunk", "idle_prefill_chunk"):
            if getattr(self, name) < SHORTEST_CHUNK:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {SHORTEST_CHUNK} or more")

    def check(self, request: GenerationRequest, vocab_size: int) -> None:
        """Refuse a request that can never be served.

        Raises:
            RequestError: says what it asks for and what the limit is.
        """
        last = vocab_size - 1
        for name, tokens in (("prompt", request.prompt), ("draft", request.draft)):
            if max(tokens, default=0) > last:
                raise RequestError(f"the {name} holds token {max(tokens)}; the vocabulary ends at {last}")
        if len(request.draft) > self.max_draft_length:
            raise RequestError(
                f"the draft holds {len(request.draft)} tokens; this engine verifies at most "
                f"{self.max_draft_length} (speculation.draft_length)"
            )
        if not all(0 <= token <= last for token in request.end_ids):
            raise RequestError(f"end token {max(request.end_ids)} is outside the vocabulary, 0..{last}")
        length = len(request.prompt) + request.max_tokens
        if length > self.max_sequence_length:
            raise RequestError(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} make {length}, "
                f"more than the limit of {self.max_sequence_length} (engine.max_sequence_length)"
            )


@dataclass(frozen=True, slots=True)
class Part:
    """What one request contributes to a step: tokens that it reads, or the tree below its last one."""

    item: RunningRequest
    tree: TokenTree
    batch: SequenceInput
    reads: bool


class Scheduler:
    """The requests of an engine.

    Args:
        config: how many, how long.
        cache: where their blocks come from.
        drafters: names of those that it knows rows of, in its order.
        scratch_rows: rows that each gets beside those of its longest context.
        weighed: most tokens of a part for which drafters are told what attention blocks got; 0: they do not want to be.

    Attributes:
        running: by id, in the order in which they were admitted.
    """

    def __init__(
        self,
        config: EngineConfig,
        cache: PrefixCache,
        drafters: Sequence[str],
        scratch_rows: int = 0,
        weighed: int = 0,
    ) -> None:
        self.running: dict[int, RunningRequest] = {}
        self._drafters = drafters
        self._config, self._cache = config, cache
        self._scratch_rows, self._weighed = scratch_rows, weighed
        self._waiting: deque[RunningRequest] = deque()
        self._pace = Pace()

    @property
    def idle(self) -> bool:
        """Whether nobody runs or waits."""
        return not self.running and not self._waiting

    def all(self) -> list[RunningRequest]:
        """All requests, the running ones first."""
        return [*self.running.values(), *self._waiting]

    def holds(self, item: RunningRequest) -> bool:
        """Whether a request has not been taken out yet."""
        return item.id in self.running or item in self._waiting

    def check_room(self, request: GenerationRequest) -> None:
        """Refuse a request that would have to wait behind too many.

        Raises:
            QueueFullError: says when to come again.
        """
        if not request.continued and len(self._waiting) >= self._config.max_queue_size + self._free_slots:
            raise QueueFullError(
                f"the queue is full: {len(self.running)} requests run and {len(self._waiting)} wait; "
                f"try again in {self._pace.seconds(len(self._waiting))} s"
            )

    def queue(self, item: RunningRequest) -> None:
        """Let a request wait: what has begun goes on before anything new begins, and is not refused half way."""
        going_on = sum(bool(each.request.continued) for each in self._waiting)
        self._waiting.insert(going_on if item.request.continued else len(self._waiting), item)

    def late(self) -> list[tuple[RunningRequest, Exception]]:
        """Requests that have waited or run for too long, each with the error that it has to end with."""
        return late(self._waiting, self.running.values(), self._config)

    def admit(self, statistics: EngineStatistics) -> list[RunningRequest]:
        """Admit whoever can be; returns them, with cache blocks."""
        admitted = []
        while self._waiting and self._free_slots > 0:
            item = self._waiting[0]
            request, metrics = item.request, item.metrics
            allocation = self._cache.allocate(
                request.prompt,
                request.prompt_length,
                len(request.prompt) + request.max_tokens + self._scratch_rows,
                drafts=[name in item.speculators for name in self._drafters],
                most_again=max(_AGAIN * request.max_tokens, _AGAIN_AT_LEAST),
                salt=request.cache_salt,
            )
            if allocation is None:
                break
            self._waiting.popleft()
            item.blocks, item.cached = allocation.blocks, allocation.cached
            item.rows = [DrafterRows(allocation.blocks, drafted) for drafted in allocation.drafted]
            lacking = {name for name, able in zip(self._drafters, allocation.able, strict=True) if not able}
            item.speculators = tuple(name for name in item.speculators if name not in lacking)
            metrics.kv_new_blocks, metrics.kv_reused_blocks = (
                len(allocation.blocks) - allocation.reused,
                allocation.reused,
            )
            metrics.first_scheduled_ns = time.time_ns()
            statistics.reused_blocks += allocation.reused
            self.running[item.id] = item
            admitted.append(item)
        return admitted

    def parts(self, trees: Mapping[int, TokenTree]) -> list[Part]:
        """Every request that decodes, with its tree, and prompt chunks as far as the step's share goes."""
        parts = []
        left = self._prompt_share()
        for item in self.running.values():
            weighed = self._weighed if item.speculates else 0
            if not item.in_prefill:
                tree = trees.get(item.id, EMPTY)
                parts.append(Part(item, tree, item.next_tree(tree, weighed), reads=False))
            elif left >= SHORTEST_CHUNK:
                chunk = item.next_chunk(left, weighed)
                left -= len(chunk.tokens)
                parts.append(Part(item, EMPTY, chunk, reads=True))
        return parts

    def remove(self, item: RunningRequest, *, keep_rows: bool) -> bool:
        """Take out a request that ends, and keep its cache rows for others if they may be; whether it was running."""
        self._pace.note_end()
        if item.id not in self.running:
            self._waiting.remove(item)
            return False
        del self.running[item.id]
        request = item.request
        self._cache.end(
            item.blocks,
            item.reusable() if keep_rows else (),
            request.prompt_length,
            [rows.drafted for rows in item.rows],
            salt=request.cache_salt,
        )
        return True

    def observe_load(self, statistics: EngineStatistics) -> None:
        """Set the gauges."""
        statistics.waiting = len(self._waiting)
        statistics.prefilling = sum(item.in_prefill for item in self.running.values())
        statistics.decoding = len(self.running) - statistics.prefilling
        statistics.used_blocks = self._cache.used

    @property
    def _free_slots(self) -> int:
        return self._config.max_batch_size - len(self.running)

    def _prompt_share(self) -> int:
        """Most prompt tokens of a step; more while nobody decodes who would have to wait for them."""
        nobody_waits = all(item.in_prefill for item in self.running.values())
        return self._config.idle_prefill_chunk if nobody_waits else self._config.prefill_chunk
