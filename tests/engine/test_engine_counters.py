"""Counters of requests and of the engine agree with each other and with what was emitted."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.request import GenerationRequest, SamplingParams
from speculators.base import Speculator
from speculators.registry import create
from tests.engine.driving import (
    VOCABULARY,
    BranchingOracle,
    Outcome,
    generate,
    make_engine,
    plain,
    prompt_of,
    run,
)
from tests.speculators.adversaries import OracleDrafter, RandomDrafter
from tests.tiny import TinyTargets

SAMPLED = SamplingParams(temperature=1.0, seed=3)


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "fp32")


def requests_with_endings(
    runner: CompiledRunner,
) -> tuple[list[GenerationRequest], dict[tuple[int, ...], list[int]]]:
    """Requests that end by length, by stop sequence and by end token, and their unending outputs."""
    requests = [GenerationRequest(prompt_of(length), 20, SAMPLED) for length in (3, 30, 31, 64, 70, 71)]
    outputs = {request.prompt: plain(runner, request) for request in requests}
    full = [outputs[request.prompt] for request in requests]
    requests[1] = replace(requests[1], stop_sequences=(tuple(full[1][9:11]),))
    requests[2] = replace(requests[2], end_ids=frozenset({full[2][10]}))
    requests[3] = replace(requests[3], end_ids=frozenset({full[3][0]}))
    requests[4] = replace(requests[4], end_ids=frozenset({full[4][2]}))
    requests[5] = replace(requests[5], max_tokens=1)
    return requests, outputs


def check_request(outcome: Outcome) -> None:
    metrics, emitting = outcome.last.metrics, [event for event in outcome.events if event.tokens]
    accepted = metrics.total_accepted_draft_tokens
    assert metrics.num_output_tokens == len(outcome.tokens)
    assert metrics.steps == len(emitting)
    # A step emits what it accepts and one token of its own, unless the request ends inside the draft.
    assert metrics.steps - accepted <= metrics.num_output_tokens <= metrics.steps + accepted
    assert metrics.num_output_tokens - accepted in (metrics.steps, metrics.steps - 1)
    assert 0 <= accepted <= metrics.total_draft_tokens
    rate = metrics.acceptance_rate
    assert (rate is None) == (metrics.total_draft_tokens == 0) and 0.0 <= (rate or 0.0) <= 1.0
    stamps = [metrics.arrival_ns, metrics.first_scheduled_ns, metrics.first_token_ns, metrics.last_token_ns]
    if not outcome.tokens:
        assert stamps[2:] == [0, 0], "no first token has come"
        del stamps[2:]
    assert stamps[0] > 0 and stamps == sorted(stamps)


def check_engine(engine: Engine, outcomes: Sequence[Outcome]) -> None:
    statistics, metrics = engine.statistics, [outcome.last.metrics for outcome in outcomes]
    assert statistics.emitted_tokens == sum(item.num_output_tokens for item in metrics)
    assert statistics.request_steps == sum(item.steps for item in metrics)
    assert statistics.drafted_tokens == sum(item.total_draft_tokens for item in metrics)
    assert statistics.accepted_tokens == sum(item.total_accepted_draft_tokens for item in metrics)
    assert sum(statistics.accepted_by_position) == statistics.accepted_tokens
    for counts in (statistics.drafted_by_position, statistics.accepted_by_position):
        assert counts == sorted(counts, reverse=True)
    pairs = zip(statistics.accepted_by_position, statistics.drafted_by_position, strict=True)
    assert all(accepted <= drafted for accepted, drafted in pairs)


@pytest.mark.parametrize("name", ["none", "anpd", "right", "wrong", "random trees", "branching oracle"])
def test_counters_add_up(name: str, runner: CompiledRunner) -> None:
    requests, outputs = requests_with_endings(runner)
    speculator: Speculator = {
        "none": lambda: create("none"),
        "anpd": lambda: create("anpd"),
        "right": lambda: OracleDrafter(outputs, 7, 0, VOCABULARY),
        "wrong": lambda: OracleDrafter(outputs, 7, 1, VOCABULARY),
        "random trees": lambda: RandomDrafter(VOCABULARY, 9, drawn=True, seed=0),
        "branching oracle": lambda: BranchingOracle(outputs, 12),
    }[name]()
    engine = make_engine(runner, speculator, max_batch_size=4)
    outcomes = run(engine, requests)
    for outcome in outcomes:
        check_request(outcome)
    check_engine(engine, outcomes)
    accepted, drafted = engine.statistics.accepted_tokens, engine.statistics.drafted_tokens
    if name == "none":
        assert drafted == 0
    if name == "wrong":
        assert accepted == 0 < drafted
    if name in ("right", "branching oracle"):
        assert accepted > 20


def test_a_right_drafter_halves_the_steps_again_and_again(runner: CompiledRunner) -> None:
    """The draft length starts at 3, doubles while all is accepted, and never exceeds what is left to emit."""
    request = GenerationRequest(prompt_of(10), 40, SAMPLED)
    outputs = {request.prompt: plain(runner, request)}
    outcome = generate(runner, request, OracleDrafter(outputs, 16, 0, VOCABULARY))
    assert [len(event.tokens) for event in outcome.events] == [1, 4, 7, 13, 15]
    metrics = outcome.last.metrics
    assert metrics.acceptance_rate == 1.0
    assert metrics.total_draft_tokens == 3 + 6 + 12 + 14


def test_plain_decoding_has_acceptance_length_one(runner: CompiledRunner) -> None:
    """Also when an end token ends it, which is drawn in a step of its own."""
    request = GenerationRequest(prompt_of(10), 30, SAMPLED)
    end = plain(runner, request)[12]
    for ends in (frozenset[int](), frozenset({end})):
        metrics = generate(runner, replace(request, end_ids=ends)).last.metrics
        assert metrics.steps == metrics.num_output_tokens


def test_an_answer_of_no_tokens_is_an_answer_without_acceptance(runner: CompiledRunner) -> None:
    request = GenerationRequest(prompt_of(10), 30, SAMPLED)
    engine = make_engine(runner, create("none"))
    assert engine.statistics.tokens_per_step is None
    (outcome,) = run(engine, [replace(request, end_ids=frozenset(range(VOCABULARY)))])
    assert (outcome.tokens, outcome.last.finish_reason) == ([], "stop")
    assert (outcome.last.metrics.steps, outcome.last.metrics.acceptance_rate) == (0, None)
    assert engine.statistics.tokens_per_step is None


def test_accepted_tokens_beyond_the_end_do_not_count(runner: CompiledRunner) -> None:
    """Otherwise a request could show more accepted tokens than tokens."""
    request = GenerationRequest(prompt_of(10), 30, SAMPLED)
    full = plain(runner, request)
    outputs = {request.prompt: full}
    ended = replace(request, end_ids=frozenset({full[1]}))
    outcome = generate(runner, ended, OracleDrafter(outputs, 7, 0, VOCABULARY))
    metrics = outcome.last.metrics
    assert outcome.tokens == full[:1]
    assert (metrics.num_output_tokens, metrics.steps) == (1, 1)
    assert (metrics.total_draft_tokens, metrics.total_accepted_draft_tokens) == (3, 0)


def test_prompt_and_blocks_are_counted(runner: CompiledRunner) -> None:
    metrics = generate(runner, GenerationRequest(prompt_of(33), 31)).last.metrics
    assert (metrics.num_input_tokens, metrics.num_output_tokens) == (33, 31)
    assert metrics.kv_new_blocks == 2
    assert generate(runner, GenerationRequest(prompt_of(33), 32)).last.metrics.kv_new_blocks == 3
