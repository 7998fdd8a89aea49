"""Random sequences of submissions, cancellations and steps; the books balance after every one of them."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.errors import QueueFullError
from engine.request import GenerationRequest, SamplingParams
from speculators.tree import TokenTree
from tests.engine.driving import VOCABULARY, Outcome, check_empty, make_engine, plain, prompt_of
from tests.runners import openvino_runner
from tests.speculators.adversaries import RandomDrafter
from tests.tiny import NUM_BLOCKS, THREADS, TinyTargets

BATCH, QUEUE = 3, 4
SEEDS = 3


class HalfRightDrafter(RandomDrafter):
    """Chains of what plain decoding emits, up to a random place, and of random tokens from there."""

    def __init__(self, outputs: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(VOCABULARY, 6, drawn=False, seed=0)
        self._outputs = outputs
        self._left: dict[int, list[int]] = {}

    def start(self, request_id, prompt, rows=None):  # type: ignore[no-untyped-def]
        super().start(request_id, prompt, rows)
        self._left[request_id] = list(self._outputs[tuple(prompt)])

    def propose(self, request_ids, budgets):  # type: ignore[no-untyped-def]
        chains = []
        for request_id, budget in zip(request_ids, budgets, strict=True):
            length = int(self._random.integers(0, min(budget, self.max_draft_length) + 1))
            known = self._left[request_id][: int(self._random.integers(0, length + 1))]
            guesses = self._random.integers(0, VOCABULARY, length - len(known)).tolist()
            chains.append(TokenTree.chain([*known, *guesses]))
        return chains

    def observe(self, request_id, outcome):  # type: ignore[no-untyped-def]
        super().observe(request_id, outcome)
        del self._left[request_id][: len(outcome.emitted)]


class EngineMachine(RuleBasedStateMachine):
    """Set both runners before use; they differ in their caches."""

    runner: CompiledRunner
    reference: CompiledRunner

    @initialize(chunk=st.sampled_from([3, 8, 64]))
    def start(self, chunk: int) -> None:
        self.expected: dict[tuple[int, ...], list[int]] = {}
        self.drafter = HalfRightDrafter(self.expected)
        self.engine: Engine = make_engine(
            self.runner,
            self.drafter,
            max_batch_size=BATCH,
            max_queue_size=QUEUE,
            prefill_chunk=chunk,
            idle_prefill_chunk=2 * chunk,
            max_sequence_length=128,
        )
        self.requests: dict[int, tuple[GenerationRequest, Outcome]] = {}
        self.cancelled: set[int] = set()

    @rule(
        length=st.sampled_from([1, 2, 9, 32, 50]),
        most=st.sampled_from([1, 2, 15, 40]),
        seed=st.integers(0, SEEDS),
    )
    def submit(self, length: int, most: int, seed: int) -> None:
        # Seed 0 stands for greedy. The prompt names all three, so that a drafter can look its output up.
        prompt = (length, most, seed, *prompt_of(length))
        sampling = SamplingParams(temperature=float(seed > 0), seed=seed)
        request = GenerationRequest(prompt, most, sampling)
        self.expected.setdefault(prompt, plain(self.reference, request))
        outcome, running = Outcome(), len(self.drafter.running)
        waiting = len(self.unfinished()) - running
        try:
            identity = self.engine.submit(request, outcome.events.append)
        except QueueFullError:
            assert waiting >= QUEUE + BATCH - running
            return
        assert waiting < QUEUE + BATCH - running
        self.requests[identity] = request, outcome

    @precondition(lambda self: self.unfinished())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        identity = data.draw(st.sampled_from(self.unfinished()))
        assert self.engine.cancel(identity)
        self.cancelled.add(identity)

    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            busy = not self.engine.idle
            assert self.engine.step() == busy

    def unfinished(self) -> list[int]:
        return [identity for identity, (_, outcome) in self.requests.items() if not outcome.finished]

    @invariant()
    def books_balance(self) -> None:
        statistics, unfinished = self.engine.statistics, self.unfinished()
        assert self.engine.idle == (not unfinished)
        assert len(self.drafter.running) == statistics.prefilling + statistics.decoding <= BATCH
        assert self.drafter.running <= set(unfinished)
        assert statistics.waiting == len(unfinished) - len(self.drafter.running)
        held = [self.requests[identity][0] for identity in self.drafter.running]
        needed = [-(-(len(r.prompt) + r.max_tokens) // 32) for r in held]
        assert statistics.used_blocks == len(
            {block for item in self.engine._scheduler.running.values() for block in item.blocks}
        )
        assert max(needed, default=0) <= statistics.used_blocks <= sum(needed)

    @invariant()
    def what_was_emitted_is_the_targets_own(self) -> None:
        for identity, (request, outcome) in self.requests.items():
            expected = self.expected[request.prompt]
            assert outcome.tokens == expected[: len(outcome.tokens)]
            if outcome.finished:
                reason = "cancelled" if identity in self.cancelled else "length"
                assert outcome.last.finish_reason == reason
                assert reason == "cancelled" or outcome.tokens == expected

    def teardown(self) -> None:
        while self.engine.step():
            pass
        check_empty(self.engine)
        self.what_was_emitted_is_the_targets_own()
        assert not self.drafter.running
        assert all(outcome.finished for _, outcome in self.requests.values())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_any_sequence_of_calls(precision: str, tiny_targets: TinyTargets) -> None:
    reference = tiny_targets.runner("llama", precision)
    runner = openvino_runner(tiny_targets.engine("llama", precision), num_blocks=NUM_BLOCKS, threads=THREADS)
    machine = type("Machine", (EngineMachine,), {"runner": runner, "reference": reference})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=30,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
