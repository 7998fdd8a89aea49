"""The engine: in-flight batching with exact speculation.

`Engine.step` is the architecture: admit, draft and select, run, accept, learn. Requests join and leave between steps
(`engine.scheduler`); drafts come from the speculators that a policy chooses (`engine.drafting`, `engine.policy`); a
step's forward pass holds, side by side, the trees of requests that decode and chunks of prompts that are still read;
what the target makes of them is in `engine.acceptance`. The engine has no thread of its own and is not thread-safe:
`engine.service` drives it.

Example::

    engine = Engine(runner, StaticPolicy([create("anpd")]), EngineConfig())
    engine.submit(GenerationRequest(prompt=(1, 2, 3), max_tokens=8), print)
    while engine.step(): pass
"""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engine.acceptance import Acceptance, Accepted
from engine.accounting import count
from engine.drafting import Drafting
from engine.gate import Release, StepCount
from engine.outputs import EngineStatistics, OutputCallback, RequestOutput
from engine.policy import DraftPolicy, Proposal, StepCost
from engine.prefix_cache import PrefixCache
from engine.request import GenerationRequest
from engine.runner import Runner
from engine.running import RunningRequest
from engine.scheduler import EngineConfig, Part, Scheduler
from engine.target_access import RunnerAccess
from speculators.outcome import StepOutcome


class Engine:
    """Serves generation requests on one runner, with the speculators of one policy.

    Args:
        runner: runs the target.
        policy: says who drafts.
        config: what is taken on.
        clock: seconds, by which steps are timed.

    Raises:
        ValueError: the runner's cache or positions are too short for one request of the greatest length, it lacks
            hidden states or weights of blocks that a speculator needs, or two speculators have the same name.
    """

    def __init__(
        self,
        runner: Runner,
        policy: DraftPolicy,
        config: EngineConfig,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        needs = [each.requirements for each in policy.speculators]
        scratch = max((each.scratch_rows for each in needs), default=0)
        rows = runner.num_blocks * runner.block_size - scratch
        if config.max_sequence_length > min(runner.max_sequence_length, rows):
            raise ValueError(
                f"max_sequence_length is {config.max_sequence_length}, but the engine was compiled for "
                f"{runner.max_sequence_length} tokens and its cache holds {rows}"
            )
        layers = dict.fromkeys(layer for each in needs for layer in each.hidden_layers)
        if lacking := [layer for layer in layers if layer not in runner.hidden_layers]:
            raise ValueError(
                f"speculators need hidden states {lacking}; the runner gives {runner.hidden_layers}"
            )
        weighs = any(each.block_weights for each in needs)
        if weighs and not runner.most_weighed:
            raise ValueError("speculators need to know what attention blocks get; the runner does not tell")
        self.config = config
        self.policy, self._clock = policy, clock
        drafted = [each.max_draft_length for each in policy.speculators]
        self.statistics = EngineStatistics(max([*drafted, config.max_draft_length]))
        self._runner = runner
        self._cache = PrefixCache(
            runner.num_blocks,
            runner.block_size,
            reuse=config.kv_cache_reuse,
            rows_ahead=[each.rows_ahead for each in needs],
            one_kind_of_rows=runner.one_kind_of_rows,
        )
        self._scheduler = Scheduler(
            config,
            self._cache,
            [each.name for each in policy.speculators],
            scratch,
            runner.most_weighed if weighs else 0,
        )
        self._drafting = Drafting(
            policy,
            RunnerAccess(runner, self._scheduler.running),
            max_given=config.max_draft_length,
            share=max(config.prefill_chunk, config.idle_prefill_chunk),
            statistics=self.statistics,
            clock=clock,
        )
        self._accept = Acceptance(
            runner, list(layers), max((each.target_tokens for each in needs), default=0)
        )
        self._next_id = 0

    def submit(self, request: GenerationRequest, callback: OutputCallback) -> int:
        """Queue a request; its outputs go to `callback`, called from `step`.

        Raises:
            RequestError: the request cannot be served. QueueFullError: not now.
        """
        self.config.check(request, self._runner.vocab_size)
        self._scheduler.check_room(request)
        self._next_id += 1
        item = RunningRequest.begin(self._next_id, request, callback)
        self._drafting.begin(item)
        self._scheduler.queue(item)
        self._scheduler.observe_load(self.statistics)
        return self._next_id

    def cancel(self, request_id: int) -> bool:
        """End a request now and free its slot; False if it has ended already."""
        for item in self._scheduler.all():
            if item.id == request_id:
                item.finish_reason = "cancelled"
                self._close(item, item.gate.abandon())
                return True
        return False

    def abort(self, error: Exception) -> None:
        """End every request with an error: the runner failed in a way that is nobody's fault."""
        for item in self._scheduler.all():
            self._fail(item, error)
        self._cache.clear()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.idle

    def step(self) -> bool:
        """Run one step; False if there was nothing to do."""
        started = self._clock()
        for item, error in self._scheduler.late():
            self._fail(item, error)
        self._admit()
        if not self._scheduler.running:
            return False
        proposals = self._drafting.propose(list(self._scheduler.running.values()))
        drafts = self._drafting.select(proposals)
        parts = self._scheduler.parts({key: draft.tree for key, draft in drafts.items()})
        all_logits = not self._runner.gives_best or self._accept.wants_logits(parts)
        run = self._runner.forward if all_logits else self._runner.forward_best
        logits = run([part.batch for part in parts])
        self._learn(self._accept(parts, logits), drafts)
        self._scheduler.observe_load(self.statistics)
        self.statistics.steps += 1
        seconds = self._clock() - started
        self.statistics.step_seconds += seconds
        self.policy.ran(self._cost(parts, seconds))
        return True

    def _cost(self, parts: Sequence[Part], seconds: float) -> StepCost:
        drafts = self._drafting.spent
        drafting = self._drafting.seconds
        return StepCost(
            rows=sum(len(part.batch.tokens) for part in parts if not part.reads),
            reads=any(part.reads for part in parts),
            verify_ms=(seconds - drafting) * 1e3,
            draft_ms=drafting * 1e3,
            drafts=drafts,
        )

    def _admit(self) -> None:
        for item in self._scheduler.admit(self.statistics):
            self._drafting.start(item)

    def _learn(self, accepted: Sequence[Accepted], drafts: Mapping[int, Proposal]) -> None:
        """Tell everybody what became of the step: speculators, the policy, and whoever waits for tokens."""
        for outcome in accepted:
            item = outcome.part.item
            if item.finish_reason:  # cancelled by the callback of a request before it
                continue
            if outcome.error is not None:
                self._fail(item, outcome.error)
                continue
            item.cached += len(outcome.kept)
            taken = self._take(outcome)
            if item.speculators:
                self._drafting.observe(item, drafts.get(item.id), _told(outcome, taken))
            if outcome.verdict is not None:
                self._emit(item)

    def _take(self, accepted: Accepted) -> list[int]:
        """Append what was accepted to the output, up to whatever ends it."""
        item, tree, verdict = accepted.part.item, accepted.part.tree, accepted.verdict
        if verdict is None:
            return []
        taken = item.emit(accepted.emits)
        own = bool(item.request.draft)
        if own and not item.finish_reason and not (accepted.part.reads and item.agreement == 1):
            item.finish_reason = "verified"
        log_probs: list[float] = []
        if accepted.logits is not None:
            log_probs = [_log_prob(row, token) for row, token in zip(accepted.logits, taken, strict=False)]
        drafted = 0 if own else tree.drafted  # a draft of its own is counted as a whole
        step = StepCount(len(taken), drafted, tree.depth, min(len(verdict.path), len(taken)))
        item.gate.end_step(step, log_probs)
        return taken

    def _emit(self, item: RunningRequest) -> None:
        """Give out what may be given out, and end the request if it has come to its end."""
        release = item.gate.release(ended=item.finish_reason is not None)
        if item.gate.stopped:  # maybe by the last bytes of an output that was at its end
            item.finish_reason = "stop"
        if item.finish_reason:
            self._close(item, release)
        elif release.tokens:
            count(item, release, self.statistics)
            item.callback(RequestOutput(item.id, release.tokens, item.metrics, release.log_probs))

    def _fail(self, item: RunningRequest, error: Exception) -> None:
        if not self._scheduler.holds(item):  # cancelled by the callback of a request that failed before it
            return
        item.finish_reason = "error"
        self._close(item, item.gate.abandon(), error)

    def _close(self, item: RunningRequest, release: Release, error: Exception | None = None) -> None:
        """Give back what the request holds and send its last output, with what is given out at the end."""
        count(item, release, self.statistics)
        if self._scheduler.remove(item, keep_rows=error is None):
            self._drafting.finish(item)
        self._drafting.end(item)
        self._scheduler.observe_load(self.statistics)
        item.callback(
            RequestOutput(
                *(item.id, release.tokens, item.metrics, release.log_probs),
                finish_reason=item.finish_reason,
                error=error,
                text_cut=release.cut,
            )
        )


def _told(accepted: Accepted, taken: Sequence[int]) -> StepOutcome:
    """What speculators and the policy see of a part of a step."""
    part, verdict = accepted.part, accepted.verdict
    return StepOutcome(
        tuple(taken),
        part.tree,
        verdict.path if verdict else (),
        accepted.kept,
        accepted.hidden,
        accepted.target_tokens,
        accepted.block_weights,
        reads_prompt=part.reads,
        ended=part.item.finish_reason is not None,
    )


def _log_prob(logits: NDArray[np.float32], token: int) -> float:
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - np.log(np.exp(shifted).sum()))
