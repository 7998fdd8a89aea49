"""Two servers of a toy model: right ones pass whatever their rounding, each wrong one is caught."""

from __future__ import annotations

import math
import threading
import zlib

import numpy as np
import pytest

from engine.lossless.served import Check, Output, summary
from engine.lossless.two_servers import (
    Answer,
    TwoServerSettings,
    compare,
    permutation_p_value,
    verify_two_servers,
)

VOCABULARY, END = 12, 0
NOISE = 1e-4
SETTINGS = TwoServerSettings(max_tokens=24, concurrency=(1, 4), sampled_prompts=4, draws=40)
PROMPTS = {f"prompt {number}": f"text {number}" for number in range(12)}


class Server:
    """A model whose logits are a function of the text, plus rounding that no two calls share."""

    def __init__(self, *, noise: float = NOISE, seed: int = 0, heat: float = 1.0, wrong: float = 0.0) -> None:
        self._rounding = np.random.default_rng(seed)
        self._noise, self._heat, self._wrong = noise, heat, wrong
        self._lock = threading.Lock()

    def __call__(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> Answer:
        draw = np.random.default_rng(seed)
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < max_tokens:
            logits = self._logits(prompt, tokens)
            scaled = logits / (temperature * self._heat) if temperature else logits
            token = (
                int(logits.argmax()) if not temperature else int(draw.choice(VOCABULARY, p=softmax(scaled)))
            )
            if draw.random() < self._wrong:  # a draft that should have been rejected
                token = int(np.argsort(logits)[-2])
            if token == END:
                break
            tokens.append(token)
            log_probs.append(float(np.log(softmax(logits)[token])))
        return Answer(tuple(tokens), tuple(log_probs))

    def _logits(self, prompt: str, tokens: list[int]) -> np.ndarray:
        context = zlib.crc32(f"{prompt} {tokens}".encode())
        logits = 2 * np.random.default_rng(context).normal(size=VOCABULARY)
        logits[END] -= 3
        if context % 7 == 0:  # two tokens that only rounding tells apart
            first, second = np.argsort(logits)[-2:]
            logits[first] = logits[second]
        with self._lock:
            return logits + self._noise * self._rounding.uniform(-1, 1, VOCABULARY)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def checked(drafting: Server, plain: Server | None = None) -> tuple[dict[str, Check], list[Output]]:
    outputs: list[Output] = []
    checks = verify_two_servers(PROMPTS, plain or Server(seed=1), drafting, SETTINGS, outputs.append)
    return {check.name: check for check in checks}, outputs


def by_start(checks: dict[str, Check], start: str) -> list[Check]:
    return [check for name, check in checks.items() if name.startswith(start)]


def test_a_right_server_passes_whatever_its_rounding_and_the_controls_are_caught() -> None:
    checks, outputs = checked(Server(seed=2))
    assert summary(list(checks.values()))["passed"]
    (control,) = by_start(checks, "control")
    (sampled,) = by_start(checks, "sampled")
    assert control.passed and sampled.passed, "both would have noticed something else"
    greedy = by_start(checks, "greedy, with speculation")
    assert len(greedy) == 2 and all(" 0 bugs" in check.outcome for check in greedy)
    assert any("near-tie" in check.details for check in greedy), "there were some to excuse"
    assert {output.prompt for output in outputs} == PROMPTS.keys()


def test_an_engine_that_does_not_repeat_itself_is_told_not_failed() -> None:
    checks, _ = checked(Server(seed=2))
    (twice,) = by_start(checks, "without speculation, asked twice")
    assert twice.passed is None and "not even so" in twice.outcome


def test_bits_that_are_always_equal_excuse_nothing() -> None:
    checks, _ = checked(Server(noise=0), Server(noise=0))
    assert summary(list(checks.values()))["complete"]
    assert all(f"{len(PROMPTS)} of {len(PROMPTS)}" in check.outcome for check in by_start(checks, "greedy"))
    checks, _ = checked(Server(noise=NOISE), Server(noise=0))
    assert all(check.passed is False for check in by_start(checks, "greedy"))


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_a_token_that_should_have_been_rejected_is_a_bug(share: float) -> None:
    checks, _ = checked(Server(seed=2, wrong=share))
    assert all(check.passed is False for check in by_start(checks, "greedy"))
    assert not summary(list(checks.values()))["passed"]


@pytest.mark.parametrize("heat", [0.6, 1.5])
def test_another_distribution_is_noticed(heat: float) -> None:
    checks, _ = checked(Server(seed=2, heat=heat))
    (sampled,) = by_start(checks, "sampled")
    assert sampled.passed is False and "do not agree" in sampled.outcome
    assert all(check.passed for check in by_start(checks, "greedy")), "greedily nothing is wrong"


def test_tokens_of_wrong_frequencies_but_equal_likelihood_are_noticed() -> None:
    """Two tokens of the same probability, of which one never comes."""

    def answers(tokens: list[int]) -> dict[str, list[Answer]]:
        return {"prompt": [Answer((token,), (math.log(0.5),)) for token in tokens]}

    assert permutation_p_value(answers([1, 2] * 20), answers([1, 2] * 20), 0) == 1.0
    assert permutation_p_value(answers([1, 2] * 20), answers([1] * 40), 0) < 1e-3


@pytest.mark.parametrize(
    ("other", "near"),
    [
        (-0.6931, True),  # half, as much as the end token may have
        (-0.05, False),  # 0.95: the end token cannot have been the more probable
    ],
)
def test_an_answer_that_ended_is_judged_by_what_the_other_token_left_for_its_end(
    other: float, near: bool
) -> None:
    report = compare({"a": Answer((1,), (-0.1,))}, {"a": Answer((1, 2), (-0.1, other))}, noise=0.01)
    (found,) = report.divergences
    assert found.position == 1 and found.plain_token is None and found.near_tie is near


def test_equal_answers_that_end_alike_are_equal() -> None:
    answer = {"a": Answer((1, 2), (-0.1, -0.2)), "b": Answer((), ())}
    assert compare(answer, answer, 0.0).equal == 2
