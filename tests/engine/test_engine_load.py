"""Requests come, wait, are read, decode, are cancelled or fail; nobody else notices, and nothing is left behind."""

from dataclasses import replace

import pytest

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.errors import QueueFullError, RequestError
from engine.outputs import RequestOutput
from engine.request import GenerationRequest, SamplingParams
from engine.runner import SequenceInput
from engine.scheduler import EngineConfig
from speculators.registry import create
from speculators.tree import ROOT, TokenTree
from tests.engine.driving import (
    VOCABULARY,
    BrokenRunner,
    PoisonedRunner,
    WatchedRunner,
    check_empty,
    generate,
    make_engine,
    plain,
    prompt_of,
    run,
    submit,
)
from tests.runners import openvino_runner
from tests.speculators.adversaries import OracleDrafter, RandomDrafter
from tests.tiny import MAX_LENGTH, THREADS, TinyTargets

SAMPLED = SamplingParams(temperature=1.0, seed=1)


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "fp32")


def steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        assert engine.step()


class TestPrefill:
    def test_decoding_goes_on_while_a_long_prompt_is_read(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner, prefill_chunk=8)
        decoding = submit(engine, GenerationRequest(prompt_of(5), 40))
        engine.step()
        reading = submit(engine, GenerationRequest(prompt_of(80), 4))
        for step in range(10):
            engine.step()
            assert len(decoding.events) == step + 2
            assert bool(reading.events) == (step == 9)

    def test_a_step_reads_no_more_than_its_share(self, tiny_targets: TinyTargets) -> None:
        """Over all prompts together; the oldest comes first, and what it leaves goes to the next."""
        runner = WatchedRunner(tiny_targets.engine("llama", "fp32"))
        requests = [GenerationRequest(prompt_of(length), 1) for length in (20, 5, 30)]
        run(make_engine(runner, prefill_chunk=16), requests)
        sizes = [[len(item.tokens) for item in batch] for batch in runner.batches]
        assert sizes == [[16], [4, 5, 7], [16], [7]]

    def test_more_is_read_while_nobody_decodes(self, tiny_targets: TinyTargets) -> None:
        runner = WatchedRunner(tiny_targets.engine("llama", "fp32"))
        engine = make_engine(runner, prefill_chunk=8, idle_prefill_chunk=24)
        submit(engine, GenerationRequest(prompt_of(30), 20))
        for _ in range(3):
            engine.step()
        submit(engine, GenerationRequest(prompt_of(30), 1))
        while engine.step():
            pass
        chunks = [len(item.tokens) for batch in runner.batches for item in batch if item.is_prompt]
        assert chunks == [24, 6, 8, 8, 8, 6]

    def test_a_prompt_chunk_is_never_a_single_token(self, tiny_targets: TinyTargets) -> None:
        """Whatever one prompt leaves of a step's share to the next."""
        runner = WatchedRunner(tiny_targets.engine("llama", "fp32"))
        for first in range(2, 12):
            for second in range(2, 12):
                prompts = (prompt_of(first), prompt_of(second), prompt_of(9))
                run(make_engine(runner, prefill_chunk=8), [GenerationRequest(p, 1) for p in prompts])
        lengths = {len(item.tokens) for batch in runner.batches for item in batch}
        assert lengths == set(range(2, 9))

    @pytest.mark.parametrize("chunk", [0, 1, 2])
    def test_chunks_too_short_to_cut_a_prompt_are_refused(self, chunk: int) -> None:
        with pytest.raises(ValueError, match=f"prefill_chunk is {chunk}; it must be 3 or more"):
            EngineConfig(prefill_chunk=chunk)


class TestQueue:
    def test_one_too_many_is_refused_until_there_is_room(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner, max_batch_size=2, max_queue_size=3)
        request = GenerationRequest(prompt_of(4), 6)
        accepted = [submit(engine, request) for _ in range(5)]
        with pytest.raises(QueueFullError, match="0 requests run and 5 wait"):
            submit(engine, request)
        engine.step()
        with pytest.raises(QueueFullError, match="2 requests run and 3 wait"):
            submit(engine, request)
        while not accepted[0].finished:
            engine.step()
        accepted.append(submit(engine, request))
        while engine.step():
            pass
        assert len({tuple(outcome.tokens) for outcome in accepted}) == 1
        check_empty(engine)

    def test_no_queue_at_all(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner, max_batch_size=1, max_queue_size=0)
        submit(engine, GenerationRequest((1, 2), 3))
        with pytest.raises(QueueFullError):
            submit(engine, GenerationRequest((1, 2), 3))

    def test_first_come_first_served(self, runner: CompiledRunner) -> None:
        order: list[int] = []
        engine = make_engine(runner, max_batch_size=1)
        for index in range(4):
            engine.submit(GenerationRequest((1, 2), 2), lambda event, index=index: order.append(index))  # type: ignore[misc]
        while engine.step():
            pass
        assert order == [0, 0, 1, 1, 2, 2, 3, 3]

    def test_a_request_waits_for_cache_blocks(self, tiny_targets: TinyTargets) -> None:
        runner = openvino_runner(tiny_targets.engine("llama", "fp32"), num_blocks=8, threads=THREADS)
        engine = make_engine(runner)
        large, small = GenerationRequest(prompt_of(100), 60), GenerationRequest(prompt_of(90), 60)
        first, second = submit(engine, large), submit(engine, small)
        engine.step()
        assert (engine.statistics.used_blocks, engine.statistics.waiting) == (5, 1)
        while engine.step():
            pass
        check_empty(engine)
        assert first.tokens == plain(tiny_targets.runner("llama", "fp32"), large)
        assert second.tokens == plain(tiny_targets.runner("llama", "fp32"), small)

    def test_gauges_follow_the_load(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner, max_batch_size=2, prefill_chunk=8)
        for length in (4, 40, 4):
            submit(engine, GenerationRequest(prompt_of(length), 9))
        assert engine.statistics.waiting == 3
        engine.step()
        statistics = engine.statistics
        assert (statistics.waiting, statistics.prefilling, statistics.decoding) == (1, 1, 1)
        assert statistics.used_blocks == 1 + 2


class TestRefusal:
    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            (GenerationRequest((1, VOCABULARY), 4), "token 265; the vocabulary ends at 264"),
            (
                GenerationRequest((1,), MAX_LENGTH),
                "1 prompt tokens and max_tokens 256 make 257.*limit of 256",
            ),
            (GenerationRequest(prompt_of(256), 1), "make 257"),
            (GenerationRequest((1,), 4, end_ids=frozenset({265})), "end token 265.*0..264"),
            (GenerationRequest((1,), 4, end_ids=frozenset({2, -1})), "end token.*0..264"),
        ],
    )
    def test_impossible_requests(
        self, request_: GenerationRequest, message: str, runner: CompiledRunner
    ) -> None:
        good = GenerationRequest(prompt_of(6), 8)
        engine = make_engine(runner)
        outcome = submit(engine, good)
        engine.step()
        with pytest.raises(RequestError, match=message):
            submit(engine, request_)
        while engine.step():
            pass
        check_empty(engine)
        assert outcome.tokens == plain(runner, good)

    def test_the_longest_request_is_served(self, runner: CompiledRunner) -> None:
        assert len(generate(runner, GenerationRequest(prompt_of(255), 1)).tokens) == 1
        assert len(generate(runner, GenerationRequest((1,), 255), create("anpd")).tokens) == 255

    def test_limits_that_the_runner_cannot_keep(self, tiny_targets: TinyTargets) -> None:
        with pytest.raises(
            ValueError, match="max_sequence_length is 257, but the engine was compiled for 256"
        ):
            make_engine(tiny_targets.runner("llama", "fp32"), max_sequence_length=257)
        runner = openvino_runner(tiny_targets.engine("llama", "fp32"), num_blocks=2)
        with pytest.raises(ValueError, match="its cache holds 64"):
            make_engine(runner, max_sequence_length=65)
        make_engine(runner, max_sequence_length=64)


class TestCancel:
    @pytest.mark.parametrize("after", [0, 1, 3, 8])
    def test_its_slot_and_blocks_are_free_at_once(self, after: int, runner: CompiledRunner) -> None:
        """While it waits (0), reads its prompt (1, 3) or decodes (8)."""
        other = GenerationRequest(prompt_of(7), 30, SAMPLED)
        engine = make_engine(runner, RandomDrafter(VOCABULARY, 4, drawn=False, seed=1), prefill_chunk=8)
        beside = submit(engine, other)
        events: list[RequestOutput] = []
        identity = engine.submit(GenerationRequest(prompt_of(40), 50), events.append)
        for _ in range(after):
            engine.step()
        assert engine.cancel(identity)
        assert events[-1].finish_reason == "cancelled"
        assert engine.statistics.used_blocks == (2 if after else 0)
        assert (engine.statistics.decoding, engine.statistics.prefilling) == ((1, 0) if after else (0, 0))
        assert not engine.cancel(identity)
        while engine.step():
            pass
        check_empty(engine)
        assert [event.finish_reason for event in events].count("cancelled") == 1
        assert beside.tokens == plain(runner, other)

    def test_unknown_and_finished_requests(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner)
        identity = engine.submit(GenerationRequest((1, 2), 1), lambda event: None)
        assert not engine.cancel(identity + 1)
        engine.step()
        assert not engine.cancel(identity)

    def test_the_next_in_the_queue_takes_the_slot_in_the_next_step(self, runner: CompiledRunner) -> None:
        engine = make_engine(runner, max_batch_size=1)
        identity = engine.submit(GenerationRequest((1, 2), 50), lambda event: None)
        waiting = submit(engine, GenerationRequest((1, 2), 50))
        engine.step()
        engine.cancel(identity)
        engine.step()
        assert len(waiting.tokens) == 1

    def test_a_sink_may_cancel_its_own_request_and_others(self, runner: CompiledRunner) -> None:
        """A caller learns from writing an answer that the client is gone, perhaps with all its requests."""
        engine = make_engine(runner)
        events: list[RequestOutput] = []

        def cancel_all(event: RequestOutput) -> None:
            events.append(event)
            if len(event.tokens) and not event.finish_reason:
                for identity in identities:
                    engine.cancel(identity)

        identities = [engine.submit(GenerationRequest(prompt_of(5), 9), cancel_all) for _ in range(3)]
        assert engine.step()
        check_empty(engine)
        assert sorted(event.request_id for event in events if event.finish_reason) == identities
        assert sum(len(event.tokens) for event in events) == 1


class TestFailure:
    def test_logits_that_are_no_numbers_end_that_request_alone(self, tiny_targets: TinyTargets) -> None:
        def poisoned(item: SequenceInput) -> bool:
            return not item.is_prompt and item.blocks[0] == 1 and item.past > 12

        clean = tiny_targets.runner("llama", "fp32")
        requests = [GenerationRequest(prompt_of(length), 20, SAMPLED) for length in (8, 9, 10)]
        requests[2] = replace(requests[2], sampling=SamplingParams())
        runner = PoisonedRunner(tiny_targets.engine("llama", "fp32"), poisoned)
        for speculator in (create("none"), create("anpd")):
            outcomes = run(make_engine(runner, speculator), requests)
            expected = [plain(clean, request) for request in requests]
            assert [outcomes[0].tokens, outcomes[2].tokens] == [expected[0], expected[2]]
            failed = outcomes[1]
            assert failed.last.finish_reason == "error"
            assert "NaN" in str(failed.last.error)
            assert 0 < len(failed.tokens) < 20
            assert failed.tokens == expected[1][: len(failed.tokens)]

    def test_greedy_requests_notice_it_too_and_already_in_the_prompt(self, tiny_targets: TinyTargets) -> None:
        runner = PoisonedRunner(tiny_targets.engine("llama", "fp32"), lambda item: item.tokens[0] == 13)
        requests = [GenerationRequest((13, 2, 3), 5), GenerationRequest((12, 2, 3), 5)]
        failed, fine = run(make_engine(runner), requests)
        assert (failed.last.finish_reason, failed.tokens) == ("error", [])
        assert (fine.last.finish_reason, len(fine.tokens)) == ("length", 5)

    def test_a_failing_runner_can_be_followed_by_an_abort(self, tiny_targets: TinyTargets) -> None:
        engine = make_engine(BrokenRunner(tiny_targets.engine("llama", "fp32"), calls=2), max_batch_size=2)
        outcomes = [submit(engine, GenerationRequest(prompt_of(5), 9)) for _ in range(3)]
        steps(engine, 2)
        with pytest.raises(RuntimeError, match="the device is gone"):
            engine.step()
        engine.abort(RuntimeError("the device is gone"))
        check_empty(engine)
        assert [outcome.last.finish_reason for outcome in outcomes] == ["error"] * 3
        assert [len(outcome.tokens) for outcome in outcomes] == [2, 2, 0]

    @pytest.mark.parametrize(
        "tree", [TokenTree.chain([1] * 4), TokenTree.chain([1, VOCABULARY]), TokenTree((1,) * 9, (ROOT,) * 9)]
    )
    def test_drafts_that_do_not_fit_are_not_run(self, tree: TokenTree, runner: CompiledRunner) -> None:
        """A node beyond the budget would be written into cache blocks of another request."""

        class Careless(OracleDrafter):
            def propose(self, request_ids, budgets):  # type: ignore[no-untyped-def]
                return [tree for _ in request_ids]

        engine = make_engine(runner, Careless({(1, 2): [3]}, 9, 0, VOCABULARY))
        submit(engine, GenerationRequest((1, 2), 4))
        engine.step()
        with pytest.raises(ValueError, match=r"speculator oracle proposed .* at most 2 nodes"):
            engine.step()


def test_released_blocks_are_used_again_first(tiny_targets: TinyTargets) -> None:
    """A cache that is mostly empty touches few pages, if nothing is kept for later."""
    runner = WatchedRunner(tiny_targets.engine("llama", "fp32"))
    engine = make_engine(runner, kv_cache_reuse=False)
    for _ in range(10):
        submit(engine, GenerationRequest(prompt_of(33), 5))
        while engine.step():
            pass
    assert {block for batch in runner.batches for item in batch for block in item.blocks} == {0, 1}
