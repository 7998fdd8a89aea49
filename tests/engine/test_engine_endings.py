"""What ends a request: its length, a stop sequence, an end token; also in the middle of a draft."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.compiled_runner import CompiledRunner
from engine.request import GenerationRequest, SamplingParams
from speculators.base import Speculator
from speculators.none import NoSpeculator
from speculators.registry import create
from tests.engine.driving import VOCABULARY, BranchingOracle, Outcome, generate, plain
from tests.reference_model import forward
from tests.speculators.adversaries import OracleDrafter
from tests.tiny import TinyTargets

PROMPT = (4, 8, 15, 16, 23, 42)
LENGTH = 24
# Sampled, because greedy output of a random model repeats itself.
REQUEST = GenerationRequest(PROMPT, LENGTH, SamplingParams(temperature=1.0, seed=11))

MAKERS: dict[str, Callable[[Sequence[int]], Speculator]] = {
    "plain": lambda known: NoSpeculator(),
    "anpd": lambda known: create("anpd"),
    "chains of 1": lambda known: OracleDrafter({PROMPT: known}, 1, 0, VOCABULARY),
    "chains of 5": lambda known: OracleDrafter({PROMPT: known}, 5, 0, VOCABULARY),
    "chains of 31": lambda known: OracleDrafter({PROMPT: known}, 31, 0, VOCABULARY),
    "trees": lambda known: BranchingOracle({PROMPT: known}, 12),
}
speculators = pytest.mark.parametrize("speculator", MAKERS)


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "fp32")


def unending(runner: CompiledRunner, request: GenerationRequest) -> list[int]:
    """What plain decoding emits where nothing ends it but its length; computed once, nobody changes it."""
    return _unending(runner, replace(request, stop_sequences=(), end_ids=frozenset(), min_tokens=0))


@cache
def _unending(runner: CompiledRunner, request: GenerationRequest) -> list[int]:
    return plain(runner, request)


def outcome_of(runner: CompiledRunner, request: GenerationRequest, speculator: str) -> Outcome:
    """The request with a speculator that knows, if it is an oracle, what plain decoding emits."""
    return generate(runner, request, MAKERS[speculator](unending(runner, request)))


def expected_ending(tokens: Sequence[int], request: GenerationRequest) -> tuple[list[int], str]:
    """The rule, applied to the unending output: which part of it is emitted, and why it ends there."""
    emitted: list[int] = []
    for token in tokens:
        if token in request.end_ids:
            return emitted, "stop"
        emitted.append(token)
        if any(tuple(emitted[-len(stop) :]) == stop for stop in request.stop_sequences):
            return emitted, "stop"
    return emitted, "length"


@speculators
@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 24])
def test_exactly_max_tokens_are_emitted(length: int, speculator: str, runner: CompiledRunner) -> None:
    outcome = outcome_of(runner, replace(REQUEST, max_tokens=length), speculator)
    assert outcome.tokens == unending(runner, REQUEST)[:length]
    assert outcome.last.finish_reason == "length"


@speculators
@pytest.mark.parametrize("end", range(12))
def test_an_end_token_ends_the_output_and_is_not_part_of_it(
    end: int, speculator: str, runner: CompiledRunner
) -> None:
    full = unending(runner, REQUEST)
    request = replace(REQUEST, end_ids=frozenset({full[end], 264}))
    outcome = outcome_of(runner, request, speculator)
    assert outcome.tokens == full[: full.index(full[end])]
    assert outcome.last.finish_reason == "stop"


@speculators
@pytest.mark.parametrize("begin", range(8))
@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_a_stop_sequence_ends_the_output_and_is_part_of_it(
    length: int, begin: int, speculator: str, runner: CompiledRunner
) -> None:
    """Wherever a step ends, before, inside or after the sequence."""
    full = unending(runner, REQUEST)
    request = replace(REQUEST, stop_sequences=((1, 1, 1), tuple(full[begin : begin + length])))
    outcome = outcome_of(runner, request, speculator)
    assert (outcome.tokens, outcome.last.finish_reason) == expected_ending(full, request)
    assert outcome.last.finish_reason == "stop"


def test_a_stop_sequence_is_not_looked_for_in_the_prompt(runner: CompiledRunner) -> None:
    first = unending(runner, REQUEST)[0]
    request = replace(REQUEST, stop_sequences=((PROMPT[-1], first), PROMPT))
    assert outcome_of(runner, request, "plain").last.finish_reason == "length"


@speculators
@pytest.mark.parametrize("minimum", [0, 1, 5, 12, LENGTH])
def test_no_end_token_before_min_tokens(minimum: int, speculator: str, runner: CompiledRunner) -> None:
    """Half of the vocabulary ends the output, so without the minimum it would end at once."""
    request = replace(REQUEST, end_ids=frozenset(range(0, VOCABULARY, 2)), min_tokens=minimum)
    expected = generate(runner, request)
    outcome = generate(runner, request, MAKERS[speculator](expected.tokens))
    assert len(outcome.tokens) >= minimum
    assert all(token % 2 for token in outcome.tokens)
    assert (outcome.tokens, outcome.last.finish_reason) == (expected.tokens, expected.last.finish_reason)


def test_min_tokens_takes_the_best_token_that_is_not_banned(tiny_targets: TinyTargets) -> None:
    weights = tiny_targets.weights("llama")
    ends = frozenset(range(0, VOCABULARY, 3))
    request = GenerationRequest(PROMPT, 8, end_ids=ends, min_tokens=8)
    tokens = list(PROMPT)
    for _ in range(8):
        logits = forward(weights.architecture, weights, tokens)[-1]
        logits[list(ends)] = -np.inf
        tokens.append(int(logits.argmax()))
    outcome = generate(tiny_targets.runner("llama", "fp32"), request, create("anpd"))
    assert outcome.tokens == tokens[len(PROMPT) :]


def test_log_probs_before_min_tokens_are_the_targets_own(tiny_targets: TinyTargets) -> None:
    """They are not renormalised over the tokens that are allowed."""
    weights, runner = tiny_targets.weights("llama"), tiny_targets.runner("llama", "fp32")
    ends = frozenset(range(0, VOCABULARY, 2))
    outcome = generate(runner, replace(REQUEST, end_ids=ends, min_tokens=6, return_log_probs=True))
    logits = forward(weights.architecture, weights, PROMPT)[-1]
    expected = logits[outcome.tokens[0]] - np.log(np.exp(logits).sum())
    assert outcome.log_probs[0] == pytest.approx(expected, abs=1e-4)


def test_min_tokens_with_every_token_an_end_token_is_an_error_of_that_request(runner: CompiledRunner) -> None:
    request = replace(REQUEST, end_ids=frozenset(range(VOCABULARY)), min_tokens=3)
    outcome = outcome_of(runner, request, "plain")
    assert outcome.last.finish_reason == "error"
    assert "banned" in str(outcome.last.error)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 5),
    stops=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 5)), max_size=3),
    ends=st.lists(st.integers(0, 40), max_size=2),
    length=st.integers(1, LENGTH),
    speculator=st.sampled_from(list(MAKERS)),
)
def test_any_mixture_of_endings(
    seed: int,
    stops: list[tuple[int, int]],
    ends: list[int],
    length: int,
    speculator: str,
    runner: CompiledRunner,
) -> None:
    request = replace(REQUEST, max_tokens=length, sampling=SamplingParams(temperature=1.0, seed=seed))
    full = unending(runner, replace(request, max_tokens=48))
    request = replace(
        request,
        stop_sequences=tuple(tuple(full[begin : begin + size]) for begin, size in stops),
        end_ids=frozenset(full[position] for position in ends),
    )
    outcome = outcome_of(runner, request, speculator)
    assert (outcome.tokens, outcome.last.finish_reason) == expected_ending(full[:length], request)
