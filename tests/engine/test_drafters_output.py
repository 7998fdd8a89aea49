"""Speculators that are compiled or need the engine: the output is the target's own, and good ones are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.openvino_graphs import OpenVinoBackend
from engine.request import GenerationRequest, SamplingParams
from speculators.base import Speculator
from tests.drafters import EVERY, VARIANT, TinyDrafters, layers_of, planted_prompts
from tests.engine.driving import check_empty, make_engine, plain, prompt_of, run, submit
from tests.runners import openvino_runner
from tests.tiny import NUM_BLOCKS, THREADS

pytestmark = pytest.mark.torch

SLOTS = 8
_PLAIN: dict[tuple[str, GenerationRequest], list[int]] = {}
_RUNNERS: dict[tuple[str, tuple[int, ...]], CompiledRunner] = {}
_SPECULATORS: dict[tuple[str, str, bool], list[Speculator]] = {}


@pytest.fixture(params=["fp32", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def runner_for(drafters: TinyDrafters, precision: str, speculators: Sequence[Speculator]) -> CompiledRunner:
    """A runner that gives the hidden states that the speculators need."""
    key = precision, layers_of(speculators)
    if any(each.requirements.drafts_with_target for each in speculators):
        return drafters.targets.runner(VARIANT, precision)  # beside which they were opened
    if key not in _RUNNERS:
        _RUNNERS[key] = openvino_runner(
            drafters.targets.engine(VARIANT, precision),
            num_blocks=NUM_BLOCKS,
            threads=THREADS,
            hidden_layers=layers_of(speculators),
            branch_blocks=512,
        )
    return _RUNNERS[key]


def engine_with(
    drafters: TinyDrafters, name: str, precision: str, *, planted: bool, batch: int
) -> tuple[Engine, CompiledRunner]:
    """A new engine on speculators that others have used."""
    key = name, precision, planted
    if key not in _SPECULATORS:
        _SPECULATORS[key] = drafters.speculators(name, precision, planted=planted, slots=SLOTS)
    return engine_on(drafters, _SPECULATORS[key], precision, batch=batch)


def engine_on(
    drafters: TinyDrafters, speculators: list[Speculator], precision: str, *, batch: int
) -> tuple[Engine, CompiledRunner]:
    runner = runner_for(drafters, precision, speculators)
    return make_engine(runner, speculators, max_batch_size=batch), runner


def plain_tokens(runner: CompiledRunner, precision: str, request: GenerationRequest) -> list[int]:
    key = precision, request
    if key not in _PLAIN:
        _PLAIN[key] = plain(runner, request)
    return _PLAIN[key]


def requests_of(sampling: SamplingParams) -> list[GenerationRequest]:
    """Prompts that planted drafters know, and others of different lengths; outputs over several cache blocks."""
    known = [GenerationRequest(prompt, 40, sampling) for prompt in planted_prompts()[:4]]
    sizes = [(1, 30), (5, 1), (31, 2), (90, 17), (2, 25)]
    others = [GenerationRequest(prompt_of(length), most, sampling) for length, most in sizes]
    return [
        replace(request, sampling=replace(sampling, seed=index))
        for index, request in enumerate(known + others)
    ]


@pytest.mark.parametrize(
    ("planted", "batch"), [(True, 1), (True, 8), (False, 8)], ids=["planted, 1", "planted, 8", "random, 8"]
)
@pytest.mark.parametrize("name", EVERY)
def test_greedy_output_is_that_of_plain_decoding(
    name: str, planted: bool, batch: int, precision: str, tiny_drafters: TinyDrafters
) -> None:
    engine, runner = engine_with(tiny_drafters, name, precision, planted=planted, batch=batch)
    requests = requests_of(SamplingParams())
    found = [outcome.tokens for outcome in run(engine, requests)]
    assert found == [plain_tokens(runner, precision, request) for request in requests]
    statistics = engine.statistics
    assert statistics.drafted_tokens > 0
    if planted:
        assert (statistics.tokens_per_step or 0.0) > 1.2, statistics


@pytest.mark.parametrize("name", EVERY)
def test_sampled_output_for_a_seed_is_that_of_plain_decoding(name: str, tiny_drafters: TinyDrafters) -> None:
    engine, runner = engine_with(tiny_drafters, name, "int8", planted=True, batch=5)
    requests = requests_of(SamplingParams(temperature=0.7, top_p=0.9))
    found = [outcome.tokens for outcome in run(engine, requests)]
    assert found == [plain_tokens(runner, "int8", request) for request in requests]


@pytest.mark.parametrize("name", EVERY)
def test_requests_that_join_leave_and_are_cancelled_do_not_disturb_the_others(
    name: str, tiny_drafters: TinyDrafters
) -> None:
    """The drafter's caches are reused by whoever comes next, and acceptance does not suffer from who was there."""
    engine, runner = engine_with(tiny_drafters, name, "int8", planted=True, batch=3)
    requests = requests_of(SamplingParams())
    outcomes = []
    for number, request in enumerate([*requests, *requests[:5]]):
        outcomes.append((request, number % 4 == 1, submit(engine, request)))
        for _ in range(3):
            engine.step()
        if number % 4 == 1:
            engine.cancel(number + 1)
    while engine.step():
        pass
    check_empty(engine)
    for request, cancelled, outcome in outcomes:
        expected = plain_tokens(runner, "int8", request)
        assert outcome.tokens == (expected[: len(outcome.tokens)] if cancelled else expected)


@pytest.mark.parametrize(
    "name", ["eagle, tree", "eagle3, chain", "eagle3, tree", "peagle, chain", "draft_model, chain"]
)
def test_the_drafters_own_cache_is_the_same_whoever_was_there_before(
    name: str, tiny_drafters: TinyDrafters
) -> None:
    """The drafts of a request, told by how many tokens each step emits, alone and in a crowd."""
    request = GenerationRequest(planted_prompts()[0], 50)
    new = tiny_drafters.speculators(name, "fp32", planted=True, slots=3)
    fresh, _ = engine_on(tiny_drafters, new, "fp32", batch=3)
    expected = [len(event.tokens) for event in run(fresh, [request])[0].events]
    crowded, _ = engine_with(tiny_drafters, name, "fp32", planted=True, batch=3)
    others = requests_of(SamplingParams(temperature=1.0))
    run(crowded, others)
    busy = [submit(crowded, other) for other in others[:2]]
    outcome = submit(crowded, request)
    while crowded.step():
        pass
    assert [len(event.tokens) for event in outcome.events] == expected
    assert all(other.finished for other in busy)


class ForgetfulRunner(CompiledRunner):
    """Does not keep the accepted path."""

    def commit(self, index: int, kept: Sequence[int]) -> None:
        pass


@pytest.mark.parametrize("name", ["medusa, tree", "eagle3, tree"])
def test_control_a_runner_that_forgets_the_accepted_path_is_found_out(
    name: str, tiny_drafters: TinyDrafters
) -> None:
    speculators = tiny_drafters.speculators(name, "int8", planted=True, slots=8)
    forgetful = ForgetfulRunner(
        tiny_drafters.targets.engine(VARIANT, "int8"),
        OpenVinoBackend(THREADS),
        num_blocks=NUM_BLOCKS,
        hidden_layers=layers_of(speculators),
        branch_blocks=512,
    )
    requests = requests_of(SamplingParams())
    found = [
        outcome.tokens for outcome in run(make_engine(forgetful, speculators, max_batch_size=8), requests)
    ]
    runner = runner_for(tiny_drafters, "int8", speculators)
    assert found != [plain_tokens(runner, "int8", request) for request in requests]
