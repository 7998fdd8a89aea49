"""Drafts that come with requests, and generations that go on in later calls: bit for bit what one call gives.

Log-probabilities are compared for equality, which all logits of every step enter into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.errors import QueueFullError, RequestError
from engine.prefix_cache import PrefixCache
from engine.request import GenerationRequest, SamplingParams
from speculators.registry import create
from tests.engine.driving import (
    VOCABULARY,
    Outcome,
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
from tests.tiny import NUM_BLOCKS, THREADS, TinyTargets

SAMPLINGS = {
    "greedy": SamplingParams(),
    "top-p": SamplingParams(temperature=1.3, top_p=0.9, seed=7),
}
Drafter = Callable[[Sequence[int], int], Sequence[int]]
"""Drafts from what plain decoding emits and how much of it has been emitted."""


def right(length: int) -> Drafter:
    return lambda expected, done: expected[done : done + length]


def half_right(expected: Sequence[int], done: int) -> Sequence[int]:
    return [*expected[done : done + 2], *wrong(expected, done + 2)[:3]]


def wrong(expected: Sequence[int], done: int) -> Sequence[int]:
    return [(token + 1) % VOCABULARY for token in expected[done : done + 4]]


def varying(expected: Sequence[int], done: int) -> Sequence[int]:
    return [right(3), half_right, wrong, right(0), right(8)][done % 5](expected, done)


DRAFTERS: dict[str, Drafter] = {
    "right": right(5),
    "half right": half_right,
    "wrong": wrong,
    "none": right(0),
    "varying": varying,
}


@pytest.fixture(params=["fp32", "int8"])
def runner(request: pytest.FixtureRequest, tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", request.param)


@pytest.fixture
def int8(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "int8")


def next_call(request: GenerationRequest, output: Sequence[int], draft: Sequence[int]) -> GenerationRequest:
    """The call that verifies a draft after what earlier calls emitted, as the BLS makes it."""
    left = request.max_tokens - len(output)
    draft = tuple(draft[: left - 1])
    return replace(
        request,
        prompt=(*request.prompt, *output),
        max_tokens=len(draft) + 1,
        min_tokens=max(0, min(len(draft) + 1, request.min_tokens - len(output))),
        draft=draft,
        draft_length=0,
        continued=len(output),
    )


def in_calls(
    engine: Engine, request: GenerationRequest, expected: Sequence[int], drafter: Drafter
) -> Outcome:
    """The whole generation, one call after the other; an outcome with the events of all of them."""
    outcome = Outcome()
    while len(outcome.tokens) < request.max_tokens:
        done = outcome.tokens
        draft = drafter(expected, len(done))
        (call,) = run_kept(engine, [next_call(request, done, draft)])
        outcome.events += call.events
        assert len(call.tokens) <= len(draft) + 1
        if len(call.tokens) == 0 or tuple(call.tokens) == tuple(draft[: len(call.tokens)]):
            break  # no token of the target's own: the request has ended
    return outcome


def run_kept(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """As `run`, but what the engine keeps stays."""
    outcomes = [submit(engine, request) for request in requests]
    while engine.step():
        pass
    assert engine.statistics.used_blocks == 0
    return outcomes


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_calls_give_what_one_request_gives(
    sampling: str, drafter: str, reuse: bool, runner: CompiledRunner
) -> None:
    for length in (1, 2, 3, 31, 32, 33, 34, 65):
        request = GenerationRequest(prompt_of(length), 24, SAMPLINGS[sampling], return_log_probs=True)
        expected = generate(runner, request)
        engine = make_engine(runner, kv_cache_reuse=reuse, prefill_chunk=20)
        found = in_calls(engine, request, expected.tokens, DRAFTERS[drafter])
        assert found.tokens == expected.tokens
        assert found.log_probs == expected.log_probs


def test_a_continuation_runs_the_last_token_and_the_draft(tiny_targets: TinyTargets) -> None:
    """Everything else is in the cache."""
    runner = WatchedRunner(tiny_targets.engine("llama", "int8"))
    request = GenerationRequest(prompt_of(40), 30)
    expected = plain(runner, request)
    runner.batches.clear()
    in_calls(make_engine(runner), request, expected, right(4))
    sizes = [[len(item.tokens) for item in batch] for batch in runner.batches]
    # The prompt, then the rest of the first draft below its first token, then token and draft again and again.
    assert sizes[:2] == [[40], [4]]
    assert all(size in ([5], [1]) for size in sizes[2:])


def test_rows_of_a_prompt_serve_as_decoded_ones_and_spoil_the_bits(
    tiny_targets: TinyTargets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: on OpenVINO's kernel rows are not what their tokens are, but how they were computed."""
    int8 = tiny_targets.runner("llama", "int8", "openvino")
    differs = []
    for length in range(34, 98, 8):
        request = GenerationRequest(prompt_of(length), 24, return_log_probs=True)
        expected = generate(int8, request)
        whole = (*request.prompt, *expected.tokens[:12])

        def continued(engine: Engine, whole: tuple[int, ...] = whole) -> list[float]:
            run_kept(engine, [GenerationRequest((*whole, 1), 1)])
            (call,) = run_kept(engine, [GenerationRequest(whole, 12, continued=12, return_log_probs=True)])
            return call.log_probs

        assert continued(make_engine(int8)) == expected.log_probs[12:]
        monkeypatch.setattr(
            PrefixCache,
            "_usable",
            lambda self, kept, tokens, length, ahead: len(tokens) - 1 if len(kept.tokens) else 0,
        )
        differs.append(continued(make_engine(int8)) != expected.log_probs[12:])
        monkeypatch.undo()
    assert any(differs)


def test_a_prompt_is_read_from_where_an_earlier_one_departs(tiny_targets: TinyTargets) -> None:
    runner = WatchedRunner(tiny_targets.engine("llama", "int8"))
    shared = prompt_of(70)
    requests = [
        GenerationRequest((*shared, *prompt_of(number, seed=number)), 8, return_log_probs=True)
        for number in (1, 5, 20)
    ]
    expected = [generate(runner, request) for request in requests]
    engine = make_engine(runner)
    run_kept(engine, [GenerationRequest(shared, 4)])
    runner.batches.clear()
    found = run_kept(engine, requests)
    assert [outcome.log_probs for outcome in found] == [outcome.log_probs for outcome in expected]
    assert [item.past for item in runner.batches[0]] == [64, 64, 64]
    assert [outcome.last.metrics.kv_reused_blocks for outcome in found] == [2, 2, 2]
    assert engine.statistics.reused_blocks == 6
    check_empty(engine)


def test_what_a_cancelled_request_computed_is_kept(int8: CompiledRunner) -> None:
    request = GenerationRequest(prompt_of(40), 30, return_log_probs=True)
    expected = generate(int8, request)
    engine = make_engine(int8)
    outcome = Outcome()
    identity = engine.submit(request, outcome.events.append)
    for _ in range(9):
        engine.step()
    engine.cancel(identity)
    assert (len(outcome.tokens), engine.statistics.used_blocks) == (9, 0)
    (rest,) = run_kept(engine, [next_call(request, outcome.tokens, expected.tokens[9:12])])
    assert rest.last.metrics.kv_reused_blocks == 2
    assert rest.log_probs == expected.log_probs[9:13]


def test_an_ended_draft_counts_as_speculation(int8: CompiledRunner) -> None:
    request = GenerationRequest(prompt_of(9), 24)
    expected = plain(int8, request)
    engine = make_engine(int8)
    outcomes = []
    for done, draft, accepted in ((0, right(4), 4), (5, half_right, 2), (8, wrong, 0), (9, right(1), 1)):
        (outcome,) = run_kept(engine, [next_call(request, expected[:done], draft(expected, done))])
        assert outcome.tokens == expected[done : done + accepted + 1]
        assert outcome.last.metrics.total_accepted_draft_tokens == accepted
        assert outcome.last.metrics.total_draft_tokens == len(draft(expected, done))
        outcomes.append(outcome)
    assert [outcome.last.finish_reason for outcome in outcomes] == [
        "length",
        "verified",
        "verified",
        "length",
    ]
    statistics = engine.statistics
    assert (statistics.drafted_tokens, statistics.accepted_tokens) == (14, 7)
    assert statistics.drafted_by_position[:6] == [4, 3, 3, 3, 1, 0]
    assert statistics.accepted_by_position[:6] == [3, 2, 1, 1, 0, 0]


def test_first_token_that_differs_ends_a_call_at_once(tiny_targets: TinyTargets) -> None:
    runner = WatchedRunner(tiny_targets.engine("llama", "int8"))
    (outcome,) = run(make_engine(runner), [replace(GenerationRequest(prompt_of(9), 8), draft=(3, 4, 5))])
    assert len(runner.batches) == 1
    assert (len(outcome.tokens), outcome.last.finish_reason) == (1, "verified")


@pytest.mark.parametrize("method", ["none", "anpd"])
def test_the_engine_goes_on_by_itself_without_a_draft(method: str, runner: CompiledRunner) -> None:
    request = GenerationRequest((5, 6, 7) * 12, 40, SAMPLINGS["top-p"], return_log_probs=True)
    expected = generate(runner, request)
    for done in (1, 2, 20):
        rest = replace(
            request,
            prompt=(*request.prompt, *expected.tokens[:done]),
            max_tokens=40 - done,
            continued=done,
        )
        found = generate(runner, rest, create(method))
        assert found.log_probs == expected.log_probs[done:]
        assert found.last.finish_reason == "length"


@pytest.mark.parametrize("drafter", ["right", "half right", "none"])
def test_ends_are_found_across_calls(drafter: str, int8: CompiledRunner) -> None:
    """Stop sequences that begin in one call and end in the next, and end tokens within a draft."""
    request = GenerationRequest(prompt_of(12), 40, SAMPLINGS["top-p"])
    full = plain(int8, request)
    for end in range(4, 30, 5):
        stopped = replace(request, stop_sequences=(tuple(full[end - 3 : end]),))
        expected = generate(int8, stopped)
        outcome, engine = Outcome(), make_engine(int8)
        while not outcome.finished or outcome.events[-1].finish_reason != "stop":
            draft = DRAFTERS[drafter](full, len(outcome.tokens))
            outcome.events += run_kept(engine, [next_call(stopped, outcome.tokens, draft)])[0].events
        assert outcome.tokens == expected.tokens
    for end in range(3, 20, 4):
        ended = replace(request, end_ids=frozenset({full[end]}), min_tokens=2)
        expected = generate(int8, ended)
        found = in_calls(make_engine(int8), ended, full, DRAFTERS[drafter])
        assert found.tokens == expected.tokens
        assert found.events[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft": (1, VOCABULARY)}, "the draft holds token 265; the vocabulary ends at 264"),
        ({"draft": (1,) * 8}, "the draft holds 8 tokens; this engine verifies at most 7"),
    ],
)
def test_drafts_that_cannot_be_verified(
    changes: dict[str, tuple[int, ...]], message: str, int8: CompiledRunner
) -> None:
    engine = make_engine(int8, max_draft_length=7)
    with pytest.raises(RequestError, match=message):
        engine.submit(replace(GenerationRequest((1, 2), 9), **changes), lambda event: None)


def test_a_continuation_waits_for_a_slot_before_new_requests_and_is_not_refused(int8: CompiledRunner) -> None:
    engine = make_engine(int8, max_batch_size=1, max_queue_size=1)
    first, second = GenerationRequest(prompt_of(4), 3), GenerationRequest(prompt_of(5), 3)
    going_on = replace(GenerationRequest(prompt_of(9), 2), continued=3)
    order: list[str] = []
    engine.submit(first, lambda event: order.append("first"))
    engine.step()
    engine.submit(second, lambda event: order.append("second"))
    with pytest.raises(QueueFullError):
        engine.submit(second, lambda event: None)
    for name in ("one", "two"):
        engine.submit(going_on, lambda event, name=name: order.append(name))  # type: ignore[misc]
    while engine.step():
        pass
    assert order == ["first"] * 3 + ["one"] * 2 + ["two"] * 2 + ["second"] * 3


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    chosen=st.lists(
        st.tuples(
            st.integers(0, 9),  # when the generation begins
            st.sampled_from([2, 33, 34, 66, 90]),  # length of its prompt; all begin alike
            st.sampled_from(sorted(SAMPLINGS)),
            st.sampled_from(sorted(DRAFTERS)),
            st.booleans(),  # in calls, or as one request
        ),
        min_size=1,
        max_size=9,
    ),
    num_blocks=st.sampled_from([12, NUM_BLOCKS]),
    slots=st.integers(1, 4),
)
def test_any_mixture_of_calls_and_requests(
    chosen: list[tuple[int, int, str, str, bool]],
    num_blocks: int,
    slots: int,
    tiny_targets: TinyTargets,
    shared_runners: dict[int, CompiledRunner],
) -> None:
    """Many generations at once, sharing and losing what is kept; the reference knows no cache of others."""
    reference = tiny_targets.runner("llama", "int8")
    if num_blocks not in shared_runners:
        shared_runners[num_blocks] = openvino_runner(
            tiny_targets.engine("llama", "int8"), num_blocks=num_blocks, threads=THREADS
        )
    engine = make_engine(
        shared_runners[num_blocks], max_batch_size=slots, max_sequence_length=128, prefill_chunk=16
    )
    streams = [Stream(engine, reference, *choice) for choice in chosen]
    step = 0
    while not all(stream.ended for stream in streams):
        for stream in streams:
            stream.go_on(step)
        engine.step()
        step += 1
        held = {block for item in engine._scheduler.running.values() for block in item.blocks}
        assert engine.statistics.used_blocks <= len(held)
    check_empty(engine)
    for stream in streams:
        assert stream.done.log_probs == stream.expected.log_probs
        assert stream.done.tokens == stream.expected.tokens


@pytest.fixture(scope="module")
def shared_runners() -> dict[int, CompiledRunner]:
    return {}


class Stream:
    """One generation of the mixture, in calls or whole."""

    def __init__(
        self,
        engine: Engine,
        reference: CompiledRunner,
        begin: int,
        length: int,
        sampling: str,
        drafter: str,
        calls: bool,
    ) -> None:
        self._engine, self._begin, self._drafter, self._calls = engine, begin, DRAFTERS[drafter], calls
        prompt = tuple(np.random.default_rng(3).integers(0, VOCABULARY, length).tolist())
        self._request = GenerationRequest(prompt, 12, SAMPLINGS[sampling], return_log_probs=True)
        self.expected = generate(reference, self._request, kv_cache_reuse=False)
        self.done, self._call = Outcome(), Outcome()
        self._under_way = False

    @property
    def ended(self) -> bool:
        return len(self.done.tokens) == self._request.max_tokens

    def go_on(self, step: int) -> None:
        if self._under_way and self._call.finished:
            self.done.events += self._call.events
            self._under_way = False
        if step < self._begin or self._under_way or self.ended:
            return
        request = self._request
        if self._calls:
            done = self.done.tokens
            request = next_call(request, done, self._drafter(self.expected.tokens, len(done)))
        self._call, self._under_way = submit(self._engine, request), True
