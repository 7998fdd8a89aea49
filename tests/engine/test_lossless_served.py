"""`verify_served` passes an engine that is lossless and fails those that are not, each where it is wrong."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from build.compile import compile_engine
from engine.acceptance import Acceptance
from engine.compiled_runner import CompiledRunner
from engine.engine import Engine
from engine.lossless.served import Check, Output, Tokens, VerifySettings, summary, verify_served
from engine.outputs import RequestOutput
from engine.policy import StaticPolicy
from engine.request import GenerationRequest, SamplingParams
from engine.running import RunningRequest
from engine.sampling import target_distribution
from engine.scheduler import EngineConfig
from engine.service import EngineService
from engine.verification import Verdict
from speculators.registry import create
from speculators.tree import TokenTree
from tests.end_to_end.deployment import VOCABULARY, write_target
from tests.runners import openvino_runner

LENGTH = 512
SETTINGS = VerifySettings(max_tokens=100, sampled_prompts=16)
PROMPTS = {
    f"prompt {seed}": tuple(np.random.default_rng(seed).integers(3, VOCABULARY, 4 + seed).tolist())
    for seed in range(16)
}


class AcceptsAll(Acceptance):
    """Lossy: keeps every greedy draft, right or wrong."""

    def verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        if not item.request.sampling.greedy:
            return super().verify(item, tree, logits)
        return Verdict(tuple(range(len(tree))), int(logits[len(tree)].argmax()))


class OneWrongDraft(AcceptsAll):
    """Lossy once: the first draft of the first request is kept whatever the target says."""

    left = 1

    def verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        wrong = item.request.sampling.greedy and len(tree) and tree.tokens[0] != logits[0].argmax()
        if wrong and self.left:
            self.left -= 1
            return super().verify(item, tree, logits)
        return Acceptance.verify(self, item, tree, logits)


class TooCold(Acceptance):
    """Wrong in both arms alike: samples at another temperature than was asked for."""

    def verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        return super().verify(item, tree, logits if item.request.sampling.greedy else logits * 1.2)


class TypicalAcceptance(Acceptance):
    """Lossy: a sampled draft is kept if the target finds it likely enough, which makes the likely likelier."""

    def verify(self, item: RunningRequest, tree: TokenTree, logits: NDArray[np.float32]) -> Verdict:
        if item.request.sampling.greedy or not len(tree):
            return super().verify(item, tree, logits)
        probs = target_distribution(logits, item.request.sampling)
        path: list[int] = []
        for node, token in enumerate(tree.tokens):
            if probs[node, token] < 0.004:
                break
            path.append(node)
        return Verdict(tuple(path), item.random.choose(probs[len(path)]))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    compile_engine(
        write_target(folder / "target", "byte-level"),
        folder / "engine",
        precision="fp32",
        max_sequence_length=LENGTH,
    )
    return folder / "engine"


def runner(compiled: Path) -> CompiledRunner:
    return openvino_runner(compiled, num_blocks=8 * LENGTH // 32, threads=1)


class InProcess:
    """Answers as a server does, from an engine in this process."""

    def __init__(self, service: EngineService, end_ids: frozenset[int]) -> None:
        self._service = service
        self._end_ids = end_ids

    def __call__(
        self, prompt: Tokens, *, max_tokens: int, speculate: bool, temperature: float, seed: int
    ) -> Sequence[int]:
        events: queue.SimpleQueue[RequestOutput] = queue.SimpleQueue()
        sampling = SamplingParams(temperature=temperature, seed=seed)
        request = GenerationRequest(prompt, max_tokens, sampling, end_ids=self._end_ids)
        self._service.submit(request if speculate else replace(request, draft_length=0), events.put)
        tokens: list[int] = []
        while True:
            event = events.get(timeout=60)
            tokens += event.tokens
            if event.finish_reason:
                return tokens


Verify = Callable[..., dict[str, Check]]
GREEDY = tuple(
    f"greedy, {arm} speculation, concurrency {n}" for n, arm in ((1, "with"), (8, "without"), (8, "with"))
)
SAMPLED = "sampled, same seed, speculation off and on"
TRANSFORM = "probability integral transform, with speculation"


@pytest.fixture
def verify(compiled: Path) -> Iterator[Verify]:
    """Runs the checks of served output on an engine with a rule of acceptance; gives them by name."""
    services: list[EngineService] = []

    def run(
        rule: type[Acceptance],
        record: Callable[[Output], None],
        end_ids: frozenset[int],
        settings: VerifySettings = SETTINGS,
        joint: int = 0,
    ) -> dict[str, Check]:
        limits = EngineConfig(max_batch_size=8, max_sequence_length=LENGTH)
        target = runner(compiled)
        engine = Engine(target, StaticPolicy([create("anpd")]), limits)
        engine._accept = rule(target, (), 0)
        services.append(EngineService(engine))
        generate = InProcess(services[-1], end_ids)
        checks = verify_served(PROMPTS, generate, runner(compiled), end_ids, settings, record)
        return {check.name: check for check in itertools.islice(checks, len(GREEDY) + 2 + joint)}

    yield run
    for service in services:
        service.close()


def failed(checks: dict[str, Check]) -> set[str]:
    assert [*checks] == [*GREEDY, SAMPLED, TRANSFORM]
    return {name for name, check in checks.items() if check.passed is False}


def ignore(output: Output) -> None:
    """Keep no records."""


def test_lossless_engine_passes_bit_for_bit(verify: Verify) -> None:
    records: list[Output] = []
    checks = verify(Acceptance, records.append, frozenset())
    assert not failed(checks)
    for name in GREEDY:
        assert checks[name].outcome == "16 of 16 prompts equal, 1600 tokens, 0 near-ties, 0 bugs"
    assert checks[SAMPLED].outcome == "16 of 16 prompts equal, 1600 tokens"
    assert checks[TRANSFORM].outcome.startswith("1600 tokens agree with the target's distribution (p = ")
    assert "tokens drawn at temperature 1.2 were caught" in checks[TRANSFORM].outcome
    # Four greedy arms and two sampled ones, of every prompt.
    assert len(records) == 6 * len(PROMPTS)
    assert {len(record.tokens) for record in records} == {SETTINGS.max_tokens}
    assert summary([*checks.values()])["passed"]


def test_outputs_that_end_early_pass(verify: Verify) -> None:
    """End tokens, several of them, are draws like any other."""
    records: list[Output] = []
    checks = verify(Acceptance, records.append, frozenset(range(0, VOCABULARY, 150)))
    assert not failed(checks)
    assert min(len(record.tokens) for record in records) < SETTINGS.max_tokens / 2


def test_accepting_wrong_drafts_is_a_bug(verify: Verify) -> None:
    checks = verify(AcceptsAll, ignore, frozenset())
    assert failed(checks) == {GREEDY[0], GREEDY[2]}
    assert "BUG" in checks[GREEDY[0]].details


def test_a_single_wrong_token_is_found(verify: Verify) -> None:
    checks = verify(OneWrongDraft, ignore, frozenset())
    assert failed(checks) == {GREEDY[0]}
    assert "15 of 16 prompts equal" in checks[GREEDY[0]].outcome
    assert "0 near-ties, 1 bugs" in checks[GREEDY[0]].outcome


def test_typical_acceptance_is_not_the_target(verify: Verify) -> None:
    assert SAMPLED in failed(verify(TypicalAcceptance, ignore, frozenset()))


def test_another_temperature_is_not_the_target(verify: Verify) -> None:
    """Speculation agrees with plain decoding here, and only the distribution tells."""
    assert failed(verify(TooCold, ignore, frozenset())) == {TRANSFORM}


@pytest.mark.parametrize(
    ("max_tokens", "told"),
    [
        (6, "not tested: 96 tokens, 100 or more are needed; give more --count or --max-tokens"),
        (7, "too few to tell, tokens drawn at temperature 1.2 pass as well"),
    ],
)
def test_too_few_tokens_leave_the_check_open(verify: Verify, max_tokens: int, told: str) -> None:
    """Neither a traceback nor a failure: nothing speaks against the engine."""
    settings = VerifySettings(max_tokens=max_tokens, sampled_prompts=16)
    checks = verify(Acceptance, ignore, frozenset(), settings)
    assert not failed(checks)
    assert checks[TRANSFORM].passed is None and told in checks[TRANSFORM].outcome
    report = summary([*checks.values()])
    assert report["passed"] and not report["complete"]


def test_controls_are_told_as_what_they_are(verify: Verify) -> None:
    """A faulty verifier that is caught is good news, and is not told as a rejection."""
    settings = VerifySettings(max_tokens=8, joint_runs=4_000, control_runs=3_000)
    checks = verify(Acceptance, ignore, frozenset(), settings, joint=1)
    name, joint = [*checks.items()][-1]
    assert name == "joint distribution, chain, drawn"
    assert joint.passed and "4000 sequences agree with the target's distribution (p = " in joint.outcome
    assert joint.outcome.endswith("all 3 faulty verifiers that were tried were caught")
    assert "reject" not in joint.outcome and "FAIL" not in joint.outcome


def test_a_check_that_catches_nothing_does_not_pass(verify: Verify) -> None:
    settings = VerifySettings(max_tokens=8, joint_runs=200, control_runs=30)
    joint = [*verify(Acceptance, ignore, frozenset(), settings, joint=1).values()][-1]
    assert joint.passed is False and "this proves nothing, faulty verifiers pass as well: " in joint.outcome
