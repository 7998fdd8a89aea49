"""The engine: in-flight batching with exact speculation.

`Engine.step` is the architecture: admit, propose, run, accept. Requests join and leave between steps; a
step's forward pass holds, side by side, the trees of requests that decode and chunks of prompts that are
still read. A tree comes from the engine's speculator or, as one chain to be verified, with the request itself.
The engine has no thread of its own and is not thread-safe: `engine.service` drives it.

Example::

    engine = Engine(runner, create("anpd"), EngineLimits())
    engine.submit(GenerationRequest(prompt=(1, 2, 3), max_tokens=8), print)
    while engine.step(): pass
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.deadlines import late
from engine.events import EngineStatistics, Event, Sink
from engine.gate import Release, StepCount
from engine.pace import Pace
from engine.prefix_cache import PrefixCache
from engine.request import GenerationRequest, QueueFullError, RequestError
from engine.runner import Runner, SequenceInput
from engine.running import SHORTEST_CHUNK, RunningRequest
from engine.sampling import LogitsError, TargetDistributions
from engine.verification import Verdict, verify_greedy, verify_sampling
from speculators.base import Speculator
from speculators.draft_length import DraftLength
from speculators.graphs import DrafterRows
from speculators.tree import EMPTY, TokenTree


def _no_limit(batch_size: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine takes on; see `deployments.engines.EmbeddedEngine` for the meaning of each.

    `max_draft_length` is that of drafts which come with requests. `longest_draft` gives the most tokens to draft
    for a request while so many decode, None for no limit (`deployments.speculation.Speculation`): the more
    requests share a step, the less a step has left for drafts. With `adaptive_drafts` a request's own length follows
    what was accepted of it (`speculators.draft_length`).
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
    longest_draft: Callable[[int], int | None] = _no_limit
    adaptive_drafts: bool = True

    def __post_init__(self) -> None:
        for name in ("prefill_chunk", "idle_prefill_chunk"):
            if getattr(self, name) < SHORTEST_CHUNK:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {SHORTEST_CHUNK} or more")


class Engine:
    """Serves generation requests on one runner with one speculator.

    Raises:
        ValueError: the runner's cache or positions are too short for one request of the greatest length.
    """

    def __init__(self, runner: Runner, speculator: Speculator, limits: EngineLimits) -> None:
        rows = runner.num_blocks * runner.block_size
        if limits.max_sequence_length > min(runner.max_sequence_length, rows):
            raise ValueError(
                f"max_sequence_length is {limits.max_sequence_length}, but the engine was compiled for "
                f"{runner.max_sequence_length} tokens and its cache holds {rows}"
            )
        self.limits = limits
        self.statistics = EngineStatistics(max(speculator.max_draft_length, limits.max_draft_length))
        self._runner = runner
        self._speculator = speculator
        self._cache = PrefixCache(
            runner.num_blocks,
            runner.block_size,
            reuse=limits.kv_cache_reuse,
            rows_ahead=speculator.rows_ahead,
            one_kind_of_rows=runner.one_kind_of_rows,
        )
        self._waiting: deque[RunningRequest] = deque()
        self._running: list[RunningRequest] = []
        self._next_id = 0
        self._pace = Pace()

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        """Queue a request; its events go to `sink`, called from `step`.

        Raises:
            RequestError: the request cannot be served. QueueFullError: not now.
        """
        self._check(request)
        going_on = [item for item in self._waiting if item.request.continued]
        if not request.continued and len(self._waiting) >= self.limits.max_queue_size + self._free_slots():
            raise QueueFullError(
                f"the queue is full: {len(self._running)} requests run and {len(self._waiting)} wait; "
                f"try again in {self._pace.seconds(len(self._waiting))} s"
            )
        self._next_id += 1
        most = self._speculator.max_draft_length
        if request.draft_length is not None:
            most = min(most, request.draft_length)
        length = DraftLength(most, adaptive=self.limits.adaptive_drafts and not self._speculator.ends_drafts)
        item = RunningRequest.begin(self._next_id, request, sink, length)
        # What has begun goes on before anything new begins, and is not refused half way.
        self._waiting.insert(len(going_on) if request.continued else len(self._waiting), item)
        self._observe_load()
        return self._next_id

    def cancel(self, request_id: int) -> bool:
        """End a request now and free its slot; False if it has ended already."""
        for item in (*self._running, *self._waiting):
            if item.id == request_id:
                item.finish_reason = "cancelled"
                self._close(item, item.gate.abandon())
                return True
        return False

    def abort(self, error: Exception) -> None:
        """End every request with an error: the runner failed in a way that is nobody's fault."""
        for item in (*self._running, *self._waiting):
            self._fail(item, error)
        self._cache.clear()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self._waiting

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        started = time.perf_counter()
        for item, error in late(self._waiting, self._running, self.limits):
            self._fail(item, error)
        self._admit()
        if not self._running:
            return False
        plan = self._plan(self._propose())
        logits = self._runner.forward([part.batch for part in plan])
        self._accept(plan, logits)
        self._observe_load()
        self.statistics.steps += 1
        self.statistics.step_seconds += time.perf_counter() - started
        return True

    def _check(self, request: GenerationRequest) -> None:
        length = len(request.prompt) + request.max_tokens
        last = self._runner.vocab_size - 1
        for name, tokens in (("prompt", request.prompt), ("draft", request.draft)):
            if max(tokens, default=0) > last:
                raise RequestError(f"the {name} holds token {max(tokens)}; the vocabulary ends at {last}")
        if len(request.draft) > self.limits.max_draft_length:
            raise RequestError(
                f"the draft holds {len(request.draft)} tokens; this engine verifies at most "
                f"{self.limits.max_draft_length} (speculation.draft_length)"
            )
        if not all(0 <= token <= last for token in request.end_ids):
            raise RequestError(f"end token {max(request.end_ids)} is outside the vocabulary, 0..{last}")
        if length > self.limits.max_sequence_length:
            raise RequestError(
                f"{len(request.prompt)} prompt tokens and max_tokens {request.max_tokens} make {length}, "
                f"more than the limit of {self.limits.max_sequence_length} (engine.max_sequence_length)"
            )

    def _free_slots(self) -> int:
        return self.limits.max_batch_size - len(self._running)

    def _admit(self) -> None:
        while self._waiting and self._free_slots() > 0:
            item = self._waiting[0]
            request, metrics = item.request, item.metrics
            rows = len(request.prompt) + request.max_tokens
            lease = self._cache.lease(
                request.prompt,
                request.prompt_length,
                rows,
                drafts=item.speculates,
                salt=request.cache_salt,
            )
            if lease is None:
                return
            self._waiting.popleft()
            item.rows, item.cached = DrafterRows(lease.blocks, lease.drafted), lease.cached
            metrics.kv_new_blocks, metrics.kv_reused_blocks = len(lease.blocks) - lease.reused, lease.reused
            metrics.first_scheduled_ns = time.time_ns()
            self.statistics.reused_blocks += lease.reused
            self._running.append(item)
            if item.speculates:
                self._speculator.start(item.id, request.prompt, item.rows)

    def _propose(self) -> dict[int, TokenTree]:
        """A draft for every request that decodes and may draft, by request id."""
        started = time.perf_counter()
        decoding = [item for item in self._running if not item.in_prefill]
        limit = self.limits.longest_draft(len(decoding))
        for item in decoding:
            item.draft_limit = limit
        items = [item for item in decoding if item.speculates and item.draft_budget > 0]
        trees = self._speculator.propose([item.id for item in items], [item.draft_budget for item in items])
        self.statistics.draft_seconds += time.perf_counter() - started
        drafts = {item.id: self._checked(item, tree) for item, tree in zip(items, trees, strict=True)}
        given = {item.id: TokenTree.chain(item.given_draft) for item in decoding if item.request.draft}
        return drafts | given

    def _checked(self, item: RunningRequest, tree: TokenTree) -> TokenTree:
        """The tree as the runner can verify it; a node too many would be written to a neighbour's cache."""
        if len(tree) > item.draft_budget or max(tree.tokens, default=0) >= self._runner.vocab_size:
            raise ValueError(
                f"speculator {self._speculator.name} proposed {tree} to request {item.id}; at most "
                f"{item.draft_budget} nodes are allowed, with tokens below {self._runner.vocab_size}"
            )
        return tree

    def _prompt_share(self) -> int:
        """Most prompt tokens of a step; more while nobody decodes who would have to wait for them."""
        nobody_waits = all(item.in_prefill for item in self._running)
        return self.limits.idle_prefill_chunk if nobody_waits else self.limits.prefill_chunk

    def _plan(self, drafts: dict[int, TokenTree]) -> list["_Part"]:
        """Every request that decodes, and prompt chunks, oldest first, as far as the step's share goes."""
        plan = []
        left = self._prompt_share()
        for item in self._running:
            if not item.in_prefill:
                tree = drafts.get(item.id, EMPTY)
                plan.append(_Part(item, tree, item.next_tree(tree), reads=False))
            elif left >= SHORTEST_CHUNK:
                chunk = item.next_chunk(left)
                left -= len(chunk.tokens)
                plan.append(_Part(item, EMPTY, chunk, reads=True))
        return plan

    def _accept(self, plan: Sequence["_Part"], logits: NDArray[np.float32]) -> None:
        states = self._runner.hidden() if self._speculator.needs_hidden else None
        row = first = 0
        for index, part in enumerate(plan):
            item, count = part.item, len(part.batch.tokens) - part.batch.logits_from
            rows = logits[row : row + count]
            tokens = slice(first, first + len(part.batch.tokens))
            row, first = row + count, tokens.stop
            if item.finish_reason:  # cancelled by the sink of a request before it
                continue
            if part.reads:
                item.cached += len(part.batch.tokens)
            hidden = None if states is None else states[tokens]
            if not count:
                if hidden is not None:
                    self._observe(item, (), hidden)
                continue
            try:
                self._advance(part, index, rows, hidden)
            except LogitsError as error:
                self._fail(item, error)

    def _advance(
        self, part: "_Part", index: int, logits: NDArray[np.float32], hidden: NDArray[np.float32] | None
    ) -> None:
        """Verify the tree of one request, input `index` of the step; emit what was accepted, keep its rows."""
        item, tree = part.item, part.tree
        depths = (0, *tree.depths)
        plain = logits.copy() if item.request.return_log_probs else logits
        if len(item.output) < item.request.min_tokens:
            item.ban_early_end(logits, depths)
        verdict = self._verify(item, tree, logits)
        tokens = [*(tree.tokens[node] for node in verdict.path), verdict.token]
        if not part.reads:
            root = part.batch.logits_from
            kept = [*range(root + 1), *(root + 1 + node for node in verdict.path)]
            self._runner.commit(index, kept)
            item.cached += len(kept)
            hidden = None if hidden is None else hidden[kept]
        taken = item.emit(tokens)
        if item.request.draft and not item.finish_reason and not (part.reads and item.agreement == 1):
            item.finish_reason = "verified"
        log_probs: list[float] = []
        if item.request.return_log_probs:
            rows = (0, *(node + 1 for node in verdict.path))
            log_probs = [_log_prob(plain[row], token) for row, token in zip(rows, taken, strict=False)]
        drafted = 0 if item.request.draft else len(tree)  # a draft of its own is counted as a whole
        step = StepCount(len(taken), drafted, max(depths), min(len(verdict.path), len(taken)))
        if drafted:
            item.draft_length.update(step.nodes, step.depth, step.accepted)
        item.gate.end_step(step, log_probs)
        if not item.finish_reason or part.reads:  # a prompt that is read to its end may serve others
            self._observe(item, taken, hidden)
        self._emit(item)

    def _emit(self, item: RunningRequest) -> None:
        """Give out what may be given out, and end the request if it has come to its end."""
        release = item.gate.release(ended=item.finish_reason is not None)
        if item.gate.stopped:  # maybe by the last bytes of an output that was at its end
            item.finish_reason = "stop"
        if item.finish_reason:
            self._close(item, release)
        elif release.tokens:
            self._count(item, release)
            item.sink(Event(item.id, release.tokens, item.metrics, release.log_probs))

    def _observe(
        self, item: RunningRequest, taken: Sequence[int], hidden: NDArray[np.float32] | None
    ) -> None:
        """Tell the speculator what was emitted and read; its own reading is part of drafting."""
        if item.speculates:
            started = time.perf_counter()
            self._speculator.observe(item.id, taken, hidden)
            self.statistics.draft_seconds += time.perf_counter() - started

    def _verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        sampling = item.request.sampling
        if sampling.greedy:
            return verify_greedy(tree, logits, item.id)
        return verify_sampling(tree, TargetDistributions(logits, sampling, item.id), item.random)

    def _count(self, item: RunningRequest, release: Release) -> None:
        """Count what was emitted: no draft tokens beyond the end, no step for the end token alone."""
        metrics = item.metrics
        metrics.num_output_tokens = item.gate.given
        if release.tokens:
            metrics.last_token_ns = time.time_ns()
            metrics.first_token_ns = metrics.first_token_ns or metrics.last_token_ns
        for step in release.steps:
            metrics.steps += int(step.emitted > 0)
            self.statistics.request_steps += int(step.emitted > 0)
            self.statistics.emitted_tokens += step.emitted
            self._count_draft(item, step.nodes, step.depth, step.accepted)
        if item.request.draft and release.steps and item.finish_reason:
            nodes = min(len(item.request.draft), item.request.max_tokens - 1)
            self._count_draft(item, nodes, nodes, min(nodes, item.agreement, item.gate.given))

    def _count_draft(self, item: RunningRequest, nodes: int, depth: int, accepted: int) -> None:
        if nodes:
            item.metrics.total_draft_tokens += nodes
            item.metrics.total_accepted_draft_tokens += accepted
            self.statistics.count_draft(nodes, depth, accepted)

    def _fail(self, item: RunningRequest, error: Exception) -> None:
        item.finish_reason = "error"
        self._close(item, item.gate.abandon(), error)

    def _close(self, item: RunningRequest, release: Release, error: Exception | None = None) -> None:
        """Give back what the request holds and send its last event, with what is given out at the end."""
        self._count(item, release)
        if item in self._running:
            self._running.remove(item)
            computed = () if error else item.reusable()
            request = item.request
            self._cache.end(
                item.blocks, computed, request.prompt_length, item.rows.drafted, salt=request.cache_salt
            )
            if item.speculates:
                self._speculator.finish(item.id)
        else:
            self._waiting.remove(item)
        self._pace.note_end()
        self._observe_load()
        item.sink(
            Event(
                *(item.id, release.tokens, item.metrics, release.log_probs),
                finish_reason=item.finish_reason,
                error=error,
                text_cut=release.cut,
            )
        )

    def _observe_load(self) -> None:
        statistics = self.statistics
        statistics.waiting = len(self._waiting)
        statistics.prefilling = sum(item.in_prefill for item in self._running)
        statistics.decoding = len(self._running) - statistics.prefilling
        statistics.used_blocks = self._cache.used


@dataclass(frozen=True, slots=True)
class _Part:
    """What one request contributes to a step: tokens that it reads, or the tree below its last one."""

    item: RunningRequest
    tree: TokenTree
    batch: SequenceInput
    reads: bool


def _log_prob(logits: NDArray[np.float32], token: int) -> float:
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
