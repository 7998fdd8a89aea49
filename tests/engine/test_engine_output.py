"""What the engine emits: the target's own tokens, whoever else runs and whatever is drafted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.compiled_runner import CompiledRunner
from engine.request import GenerationRequest, SamplingParams
from speculators.base import Speculator
from speculators.registry import create
from tests.engine.driving import (
    VOCABULARY,
    BranchingOracle,
    generate,
    make_engine,
    plain,
    prompt_of,
    run,
    submit,
)
from tests.reference_model import forward
from tests.speculators.adversaries import OracleDrafter, RandomChains, RandomDrafter
from tests.tiny import TinyTargets

GREEDY = SamplingParams()
SAMPLINGS = {
    "greedy": GREEDY,
    "temperature": SamplingParams(temperature=1.0, seed=5),
    "top-k": SamplingParams(temperature=0.8, top_k=20, seed=2**64 - 1),
    "top-p": SamplingParams(temperature=1.3, top_p=0.9, seed=7),
}
Outputs = dict[tuple[int, ...], Sequence[int]]
CHAINS: dict[str, Callable[[Outputs], Speculator]] = {
    "anpd": lambda outputs: create("anpd"),
    "random chains": lambda outputs: RandomChains(VOCABULARY, 7, drawn=False, seed=1),
    "always right": lambda outputs: OracleDrafter(outputs, 7, 0, VOCABULARY),
    "always wrong": lambda outputs: OracleDrafter(outputs, 7, 1, VOCABULARY),
    "one token": lambda outputs: OracleDrafter(outputs, 1, 0, VOCABULARY),
    "longer than any answer": lambda outputs: OracleDrafter(outputs, 31, 0, VOCABULARY),
}
TREES: dict[str, Callable[[Outputs], Speculator]] = {
    "random trees": lambda outputs: RandomDrafter(VOCABULARY, 9, drawn=False, seed=2),
    "branching oracle": lambda outputs: BranchingOracle(outputs, 12),
}


@pytest.fixture(params=["fp32", "int8"])
def runner(request: pytest.FixtureRequest, tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", request.param)


def requests_of(sampling: SamplingParams) -> list[GenerationRequest]:
    """Prompts and outputs of different lengths, over several cache blocks."""
    sizes = [(1, 40), (5, 1), (17, 30), (31, 2), (40, 33), (33, 60), (90, 17), (2, 25)]
    return [
        GenerationRequest(prompt_of(length), most, replace(sampling, seed=(sampling.seed + index) % 2**64))
        for index, (length, most) in enumerate(sizes)
    ]


def test_greedy_output_and_log_probs_are_those_of_the_reference(tiny_targets: TinyTargets) -> None:
    weights = tiny_targets.weights("llama")
    request = GenerationRequest(prompt_of(20), 40, return_log_probs=True)
    outcome = generate(tiny_targets.runner("llama", "fp32"), request, create("anpd"))
    logits = forward(weights.architecture, weights, [*request.prompt, *outcome.tokens])
    rows = logits[len(request.prompt) - 1 : -1]
    assert outcome.tokens == rows.argmax(axis=1).tolist()
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(
        outcome.log_probs, expected[range(len(outcome.tokens)), outcome.tokens], atol=1e-4
    )


def test_log_probs_are_the_same_with_drafts_and_under_sampling(runner: CompiledRunner) -> None:
    """They are those of the target itself, at temperature 1 and before top-k and top-p."""
    request = GenerationRequest(prompt_of(9), 30, SAMPLINGS["top-k"], return_log_probs=True)
    expected = generate(runner, request)
    drafted = generate(runner, request, OracleDrafter({request.prompt: expected.tokens}, 7, 0, VOCABULARY))
    assert len(expected.log_probs) == len(expected.tokens) == 30
    assert drafted.log_probs == expected.log_probs
    assert all(len(event.log_probs) == len(event.tokens) for event in drafted.events)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_output_does_not_depend_on_the_batch(sampling: str, runner: CompiledRunner) -> None:
    requests = requests_of(SAMPLINGS[sampling])
    alone = [generate(runner, request).tokens for request in requests]
    assert [len(tokens) for tokens in alone] == [request.max_tokens for request in requests]
    for most in (2, 3, 8):
        together = run(make_engine(runner, max_batch_size=most), requests)
        assert [outcome.tokens for outcome in together] == alone


@pytest.mark.parametrize("speculator", CHAINS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chains_do_not_change_the_output(sampling: str, speculator: str, runner: CompiledRunner) -> None:
    requests = requests_of(SAMPLINGS[sampling])
    expected = [plain(runner, request) for request in requests]
    outputs = {request.prompt: tokens for request, tokens in zip(requests, expected, strict=True)}
    engine = make_engine(runner, CHAINS[speculator](outputs), max_batch_size=5)
    assert [outcome.tokens for outcome in run(engine, requests)] == expected


@pytest.mark.parametrize("speculator", TREES)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("variant", "precision"),
    [("llama", "fp32"), ("llama", "int8"), ("mistral window 9", "int8"), ("gemma3_text", "int8")],
)
def test_trees_do_not_change_the_output(
    variant: str, precision: str, sampling: str, speculator: str, tiny_targets: TinyTargets
) -> None:
    runner = tiny_targets.runner(variant, precision)
    requests = requests_of(SAMPLINGS[sampling])
    expected = [plain(runner, request) for request in requests]
    outputs = {request.prompt: tokens for request, tokens in zip(requests, expected, strict=True)}
    engine = make_engine(runner, TREES[speculator](outputs), max_batch_size=5)
    assert [outcome.tokens for outcome in run(engine, requests)] == expected


def test_layers_that_slide_among_layers_that_do_not_keep_the_output(tiny_targets: TinyTargets) -> None:
    """Gemma 3 in batches, verified in chains, and on rows that earlier requests left: contexts beyond its window."""
    runner = tiny_targets.runner("gemma3_text", "int8")
    requests = requests_of(GREEDY)
    expected = [plain(runner, request) for request in requests]
    outputs = {request.prompt: tokens for request, tokens in zip(requests, expected, strict=True)}
    for speculator in CHAINS.values():
        engine = make_engine(runner, speculator(outputs), max_batch_size=5, prefill_chunk=16)
        for _ in range(2):  # the second time prompts are in the cache
            assert [outcome.tokens for outcome in run(engine, requests)] == expected


def test_drawn_trees_do_not_change_greedy_output(tiny_targets: TinyTargets) -> None:
    for variant in ("llama", "mistral window 9", "gemma3_text"):
        runner = tiny_targets.runner(variant, "int8")
        requests = requests_of(GREEDY)
        engine = make_engine(runner, RandomDrafter(VOCABULARY, 6, drawn=True, seed=3))
        expected = [plain(runner, request) for request in requests]
        assert [outcome.tokens for outcome in run(engine, requests)] == expected


def test_drawn_trees_under_sampling_depend_on_the_seed_alone(tiny_targets: TinyTargets) -> None:
    """Same seed and same drafts, same output; and drawn drafts are accepted at times, so they were tried."""
    runner = tiny_targets.runner("llama", "fp32")
    request = GenerationRequest(prompt_of(12), 60, SAMPLINGS["temperature"])
    outcomes = [generate(runner, request, RandomDrafter(VOCABULARY, 9, drawn=True, seed=4)) for _ in range(2)]
    assert outcomes[0].tokens == outcomes[1].tokens
    assert outcomes[0].last.metrics.total_draft_tokens > 0


@pytest.mark.parametrize("chunk", [3, 4, 7, 32, 128])
def test_output_does_not_depend_on_the_prefill_chunk(chunk: int, runner: CompiledRunner) -> None:
    requests = [
        GenerationRequest(prompt_of(length), 5) for length in (1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 129)
    ]
    expected = [generate(runner, request).tokens for request in requests]
    together = run(make_engine(runner, prefill_chunk=chunk), requests)
    assert [outcome.tokens for outcome in together] == expected


def test_seeds_give_different_outputs_and_each_its_own_again(runner: CompiledRunner) -> None:
    requests = [
        GenerationRequest((1, 2, 3), 20, SamplingParams(temperature=1.0, seed=seed)) for seed in range(6)
    ]
    first = [generate(runner, request).tokens for request in requests]
    assert len({tuple(tokens) for tokens in first}) == len(requests)
    again = run(make_engine(runner), [*reversed(requests), *requests])
    assert [outcome.tokens for outcome in again] == [*reversed(first), *first]


def test_a_request_may_limit_or_switch_off_its_drafts(runner: CompiledRunner) -> None:
    request = GenerationRequest(prompt_of(8), 24)
    outputs: Outputs = {request.prompt: plain(runner, request)}
    drafted = []
    for length in (0, 2, None):
        limited = replace(request, draft_length=length)
        outcome = generate(runner, limited, OracleDrafter(outputs, 7, 0, VOCABULARY))
        assert outcome.tokens == outputs[request.prompt]
        drafted.append(max(len(event.tokens) for event in outcome.events))
    assert drafted == [1, 3, 8]


@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(arrivals=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 7)), min_size=1, max_size=12))
def test_joining_and_leaving_between_steps(
    arrivals: list[tuple[int, int]], tiny_targets: TinyTargets
) -> None:
    """Requests arrive at any step, into any batch; ANPD drafts for those that repeat themselves."""
    runner = tiny_targets.runner("llama", "int8")
    engine = make_engine(runner, create("anpd"), max_batch_size=3, prefill_chunk=16)
    choices = requests_of(SAMPLINGS["top-p"])
    waiting = sorted(arrivals)
    outcomes = []
    step = 0
    while waiting or not engine.idle:
        while waiting and waiting[0][0] <= step:
            request = choices[waiting.pop(0)[1]]
            outcomes.append((request, submit(engine, request)))
        engine.step()
        step += 1
    for request, outcome in outcomes:
        assert outcome.tokens == plain(runner, request)
