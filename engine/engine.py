"""The engine: in-flight batching with exact speculation.

`Engine.step` is the architecture: admit, propose, run, accept. Requests join and leave between steps; a
step's forward pass holds, side by side, the trees of requests that decode and chunks of prompts that are
still read. The engine has no thread of its own and is not thread-safe: `engine.service` drives it.

Example::

    engine = Engine(runner, create("anpd"), EngineLimits())
    engine.submit(GenerationRequest(prompt=(1, 2, 3), max_tokens=8), print)
    while engine.step(): pass
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.draft_length import DraftLength
from engine.events import EngineStatistics, Event, RequestMetrics, Sink
from engine.kv_cache import BlockPool
from engine.request import GenerationRequest, QueueFullError, RequestError
from engine.runner import Runner, SequenceInput
from engine.running import SHORTEST_CHUNK, RunningRequest
from engine.sampling import LogitsError, RequestRandom, TargetDistributions
from engine.verification import Verdict, verify_greedy, verify_sampling
from speculators.base import Speculator
from speculators.tree import EMPTY, ROOT, TokenTree


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine takes on; see `deployments.spec.EngineSpec` for the meaning of each."""

    max_batch_size: int = 16
    max_sequence_length: int = 2048
    max_queue_size: int = 64
    prefill_chunk: int = 128

    def __post_init__(self) -> None:
        if self.prefill_chunk < SHORTEST_CHUNK:
            raise ValueError(f"prefill_chunk is {self.prefill_chunk}; it must be {SHORTEST_CHUNK} or more")


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
        self.statistics = EngineStatistics(speculator.max_draft_length)
        self._runner = runner
        self._speculator = speculator
        self._pool = BlockPool(runner.num_blocks, runner.block_size)
        self._waiting: deque[RunningRequest] = deque()
        self._running: list[RunningRequest] = []
        self._next_id = 0

    def submit(self, request: GenerationRequest, sink: Sink) -> int:
        """Queue a request; its events go to `sink`, called from `step`.

        Raises:
            RequestError: the request cannot be served. QueueFullError: not now.
        """
        self._check(request)
        if len(self._waiting) >= self.limits.max_queue_size + self._free_slots():
            raise QueueFullError(
                f"the queue is full: {len(self._running)} requests run and {len(self._waiting)} wait; "
                "try again later"
            )
        self._next_id += 1
        most = self._speculator.max_draft_length
        if request.draft_length is not None:
            most = min(most, request.draft_length)
        metrics = RequestMetrics(num_input_tokens=len(request.prompt), arrival_ns=time.time_ns())
        random = RequestRandom(request.sampling.seed)
        self._waiting.append(
            RunningRequest(self._next_id, request, sink, metrics, [], random, DraftLength(most))
        )
        self._observe_load()
        return self._next_id

    def cancel(self, request_id: int) -> bool:
        """End a request now and free its slot; False if it has ended already."""
        for item in (*self._running, *self._waiting):
            if item.id == request_id:
                item.finish_reason = "cancelled"
                self._close(item, ())
                return True
        return False

    def abort(self, error: Exception) -> None:
        """End every request with an error: the runner failed in a way that is nobody's fault."""
        for item in (*self._running, *self._waiting):
            item.finish_reason = "error"
            self._close(item, (), error=error)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self._waiting

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        started = time.perf_counter()
        self._admit()
        if not self._running:
            return False
        plan = self._plan(self._propose())
        logits = self._runner.forward([batch for _, _, batch in plan])
        self._accept(plan, logits)
        self._observe_load()
        self.statistics.steps += 1
        self.statistics.step_seconds += time.perf_counter() - started
        return True

    def _check(self, request: GenerationRequest) -> None:
        length = len(request.prompt) + request.max_tokens
        last = self._runner.vocab_size - 1
        if max(request.prompt) > last:
            raise RequestError(f"the prompt holds token {max(request.prompt)}; the vocabulary ends at {last}")
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
            blocks = self._pool.allocate(len(item.request.prompt) + item.request.max_tokens)
            if blocks is None:
                return
            self._waiting.popleft()
            item.blocks = blocks
            item.metrics.kv_blocks = len(blocks)
            item.metrics.first_scheduled_ns = time.time_ns()
            self._running.append(item)
            self._speculator.start(item.id, item.request.prompt)

    def _propose(self) -> dict[int, TokenTree]:
        """A draft for every request that decodes and may draft, by request id."""
        started = time.perf_counter()
        items = [item for item in self._running if not item.in_prefill and item.draft_budget > 0]
        trees = self._speculator.propose([item.id for item in items], [item.draft_budget for item in items])
        self.statistics.draft_seconds += time.perf_counter() - started
        return {item.id: self._checked(item, tree) for item, tree in zip(items, trees, strict=True)}

    def _checked(self, item: RunningRequest, tree: TokenTree) -> TokenTree:
        """The tree as the runner can verify it; a node too many would be written to a neighbour's cache."""
        if len(tree) > item.draft_budget or max(tree.tokens, default=0) >= self._runner.vocab_size:
            raise ValueError(
                f"speculator {self._speculator.name} proposed {tree} to request {item.id}; at most "
                f"{item.draft_budget} nodes are allowed, with tokens below {self._runner.vocab_size}"
            )
        return tree if self._runner.takes_branches else _first_chain(tree)

    def _plan(self, drafts: dict[int, TokenTree]) -> list[tuple[RunningRequest, TokenTree, SequenceInput]]:
        """Every request that decodes, and prompt chunks, oldest first, as far as the step's share goes."""
        plan = []
        left = self.limits.prefill_chunk
        for item in self._running:
            if not item.in_prefill:
                tree = drafts.get(item.id, EMPTY)
                plan.append((item, tree, item.next_tree(tree)))
            elif left >= SHORTEST_CHUNK:
                chunk = item.next_chunk(left)
                left -= len(chunk.tokens)
                plan.append((item, EMPTY, chunk))
        return plan

    def _accept(
        self, plan: Sequence[tuple[RunningRequest, TokenTree, SequenceInput]], logits: NDArray[np.float32]
    ) -> None:
        row = 0
        for item, tree, batch in plan:
            count = len(batch.tokens) - batch.logits_from
            rows = logits[row : row + count]
            row += count
            if item.finish_reason:  # cancelled by the sink of a request before it
                continue
            if batch.is_prompt:
                item.cached += len(batch.tokens)
                if not count:
                    continue
            try:
                self._advance(item, tree, rows, from_prompt=batch.is_prompt)
            except LogitsError as error:
                item.finish_reason = "error"
                self._close(item, (), error=error)

    def _advance(
        self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32], *, from_prompt: bool
    ) -> None:
        """Verify one request's tree, emit what was accepted, and keep its rows."""
        depths = (0, *tree.depths)
        plain = logits.copy() if item.request.return_log_probs else logits
        if len(item.output) < item.request.min_tokens:
            item.ban_early_end(logits, depths)
        verdict = self._verify(item, tree, logits)
        tokens = [*(tree.tokens[node] for node in verdict.path), verdict.token]
        if not from_prompt:
            if tree.parents != tuple(range(-1, len(tree) - 1)):
                self._runner.commit(item.blocks, item.cached, (0, *(node + 1 for node in verdict.path)))
            item.cached += len(tokens)
        taken = item.emit(tokens)
        self._count(item, tree, max(depths), min(len(verdict.path), len(taken)), len(taken))
        log_probs: tuple[float, ...] = ()
        if item.request.return_log_probs:
            rows = (0, *(node + 1 for node in verdict.path))
            log_probs = tuple(_log_prob(plain[row], token) for row, token in zip(rows, taken, strict=False))
        if item.finish_reason:
            self._close(item, tuple(taken), log_probs)
        else:
            self._speculator.observe(item.id, taken)
            item.sink(Event(item.id, tuple(taken), item.metrics, log_probs))

    def _verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        sampling = item.request.sampling
        if sampling.greedy:
            return verify_greedy(tree, logits, item.id)
        return verify_sampling(tree, TargetDistributions(logits, sampling, item.id), item.random)

    def _count(self, item: RunningRequest, tree: TokenTree, depth: int, accepted: int, taken: int) -> None:
        """Count what was emitted: no draft tokens beyond the end, no step for the end token alone."""
        steps = int(taken > 0)
        item.metrics.steps += steps
        self.statistics.request_steps += steps
        self.statistics.emitted_tokens += taken
        if len(tree):
            item.draft_length.update(len(tree), depth, accepted)
            item.metrics.total_draft_tokens += len(tree)
            item.metrics.total_accepted_draft_tokens += accepted
            self.statistics.count_draft(len(tree), depth, accepted)

    def _close(
        self,
        item: RunningRequest,
        tokens: tuple[int, ...],
        log_probs: tuple[float, ...] = (),
        error: Exception | None = None,
    ) -> None:
        """Give back what the request holds and send its last event."""
        if item in self._running:
            self._running.remove(item)
            self._pool.release(item.blocks)
            self._speculator.finish(item.id)
        else:
            self._waiting.remove(item)
        self._observe_load()
        item.sink(Event(item.id, tokens, item.metrics, log_probs, item.finish_reason, error))

    def _observe_load(self) -> None:
        statistics = self.statistics
        statistics.waiting = len(self._waiting)
        statistics.prefilling = sum(item.in_prefill for item in self._running)
        statistics.decoding = len(self._running) - statistics.prefilling
        statistics.used_blocks = self._pool.num_blocks - self._pool.free


def _first_chain(tree: TokenTree) -> TokenTree:
    """The path through first children: which siblings are left out does not depend on their tokens."""
    path, node = [ROOT], ROOT
    while children := tree.children(node):
        node = children[0]
        path.append(node)
    drawn = tree.proposals or {}
    kept = {depth: drawn[node] for depth, node in enumerate(path, ROOT) if node in drawn}
    return TokenTree(tuple(tree.tokens[node] for node in path[1:]), tuple(range(ROOT, len(path) - 2)), kept)


def _log_prob(logits: NDArray[np.float32], token: int) -> float:
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
