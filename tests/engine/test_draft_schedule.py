"""How much is drafted follows how many requests share a step; what comes out does not."""

import pytest

from deployments.speculation import Anpd
from engine.compiled_runner import CompiledRunner
from engine.request import GenerationRequest
from tests.engine.driving import VOCABULARY, WatchedRunner, make_engine, run
from tests.speculators.adversaries import OracleDrafter, RandomChains
from tests.tiny import TinyTargets


@pytest.fixture
def watched(tiny_targets: TinyTargets) -> WatchedRunner:
    return WatchedRunner(tiny_targets.engine("llama", "fp32"))


def _requests(count: int) -> list[GenerationRequest]:
    return [GenerationRequest(tuple(range(5 + row, 12 + row)), 24) for row in range(count)]


@pytest.fixture
def oracle(tiny_targets: TinyTargets) -> OracleDrafter:
    """Drafts of 4 that are always right."""
    requests = _requests(4)
    outcomes = run(make_engine(tiny_targets.runner("llama", "fp32")), requests)
    pairs = zip(requests, outcomes, strict=True)
    return OracleDrafter({request.prompt: outcome.tokens for request, outcome in pairs}, 4, 0, VOCABULARY)


def _longest_by_batch(watched: WatchedRunner) -> dict[int, int]:
    """Most draft tokens of a request by the number of requests that decoded in its step."""
    longest: dict[int, int] = {}
    for batch in watched.batches:
        decoding = [len(item.tokens) - 1 for item in batch if not item.is_prompt]
        if decoding:
            longest[len(decoding)] = max(longest.get(len(decoding), 0), *decoding)
    return longest


def test_the_schedule_bounds_the_drafts_of_a_batch(watched: WatchedRunner, oracle: OracleDrafter) -> None:
    policy = Anpd(method="anpd", draft_length=4, draft_length_schedule={1: 4, 3: 2})
    for count in (1, 2, 3, 4):
        run(make_engine(watched, oracle, longest_draft=policy.longest_draft), _requests(count))
    longest = _longest_by_batch(watched)
    assert longest[1] == 4
    assert longest[2] == 2
    assert longest[3] == 2
    assert longest[4] == 0


def test_max_concurrency_switches_speculation_off_above_it(
    watched: WatchedRunner, oracle: OracleDrafter
) -> None:
    policy = Anpd(method="anpd", draft_length=4, max_concurrency=2)
    for count in (2, 3):
        run(make_engine(watched, oracle, longest_draft=policy.longest_draft), _requests(count))
    longest = _longest_by_batch(watched)
    assert longest[2] > 0
    assert longest[3] == 0


@pytest.fixture
def runner(tiny_targets: TinyTargets) -> CompiledRunner:
    return tiny_targets.runner("llama", "int8")


def test_the_output_is_the_same_with_and_without_a_schedule(runner: CompiledRunner) -> None:
    policy = Anpd(method="anpd", draft_length=4, draft_length_schedule={1: 4, 2: 1})
    outputs = []
    for limits in ({}, {"longest_draft": policy.longest_draft}):
        drafter = RandomChains(VOCABULARY, 4, drawn=False, seed=7)
        outcomes = run(make_engine(runner, drafter, **limits), _requests(4))
        outputs.append([outcome.tokens for outcome in outcomes])
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("ends_drafts", [False, True])
def test_drafts_that_a_drafter_ends_itself_are_not_shortened(
    ends_drafts: bool, watched: WatchedRunner, tiny_targets: TinyTargets
) -> None:
    request = _requests(1)[0]
    tokens = run(make_engine(tiny_targets.runner("llama", "fp32")), [request])[0].tokens
    wrong = OracleDrafter({request.prompt: tokens}, 4, 1, VOCABULARY)
    wrong.ends_drafts = ends_drafts
    run(make_engine(watched, wrong), [request])
    drafts = [len(item.tokens) - 1 for batch in watched.batches for item in batch if not item.is_prompt]
    assert max(drafts[3:-4]) == (4 if ends_drafts else 1)
