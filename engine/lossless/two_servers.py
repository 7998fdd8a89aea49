"""Is speculative output the target's own where no request can do without speculation, as on vLLM?

A second server of the same engine, with the same model and without speculation, says what would have been right. Both
are asked through the same door, for text and for the log-probability of each token.

Such engines do not promise equal bits: sums are added in other orders when a step has other requests or more tokens.
How much that changes is measured on the server without speculation alone, between one request at a time and several,
in its log-probabilities along texts that are equal. Where two answers part, the log-probabilities of both tokens tell
whether that explains it: each is the greatest of its own server, in the same context, so for a near-tie they differ by
twice that noise at most. A token that should not have been accepted was unlikely, and its own log-probability, which
the target gives it, says so.

Sampled answers of such engines are not equal for a seed, so their distribution is compared, by permutation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.lossless.greedy import Divergence, GreedyReport
from engine.lossless.served import Check, Output

_PERMUTATIONS = 10_000
_CONTROL_TEMPERATURE = 1.5


@dataclass(frozen=True, slots=True)
class Answer:
    """Tokens, without one that ended them, and the log-probability that the target gave to each."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]


class Ask(Protocol):
    """Asks one of the servers to continue a prompt."""

    def __call__(self, prompt: str, *, max_tokens: int, temperature: float, seed: int) -> Answer:
        """The whole answer."""


@dataclass(frozen=True, slots=True)
class TwoServerSettings:
    """What to check, and how thoroughly.

    `alpha` is the probability that a right server fails the comparison of distributions.
    """

    max_tokens: int = 128
    concurrency: tuple[int, int] = (1, 8)
    sampled_prompts: int = 8
    draws: int = 48
    drawn_tokens: int = 4
    alpha: float = 1e-3
    seed: int = 0


def verify_two_servers(
    prompts: Mapping[str, str],
    plain: Ask,
    drafting: Ask,
    settings: TwoServerSettings,
    record: Callable[[Output], None],
) -> Iterator[Check]:
    """Run all checks; each result is given as soon as it is there.

    Args:
        prompts: texts by name.
        plain: asks the server without speculation; called from several threads.
        drafting: asks the other one.
        settings: what to check.
        record: gets every answer.
    """
    asking = _Asking(prompts, settings, record)
    one, several = settings.concurrency
    reference = asking.greedy("plain", plain, one)
    again = asking.greedy("plain, again", plain, one)
    equal = sum(again[name].tokens == reference[name].tokens for name in prompts)
    yield Check(
        f"without speculation, asked twice, concurrency {one}",
        f"{equal} of {len(prompts)} prompts equal: "
        + (
            "so far it is deterministic"
            if equal == len(prompts)
            else "this engine repeats itself not even so"
        ),
        None if equal < len(prompts) else True,
    )
    beside = asking.greedy("plain", plain, several)
    noise = 2 * max(_change(reference, beside), _change(reference, again))
    report = compare(reference, beside, noise)
    yield Check(
        f"without speculation, concurrency {several}",
        f"{report.equal} of {report.prompts} prompts equal; the engine's own log-probabilities change by up to "
        f"{noise / 2:.2g} with the batch",
        True if report.lossless else None,
        report.table() if report.divergences else "",
    )
    for concurrency in settings.concurrency:
        answers = asking.greedy("drafting", drafting, concurrency)
        yield _greedy_check(f"greedy, with speculation, concurrency {concurrency}", reference, answers, noise)
    yield _control(reference, asking.drawn_once(drafting), noise)
    yield _distribution(asking, plain, drafting)


def compare(reference: Mapping[str, Answer], answers: Mapping[str, Answer], noise: float) -> GreedyReport:
    """Compare answers token for token; `noise` is how far two log-probabilities of a near-tie may lie apart."""
    found = [
        parted
        for name, answer in reference.items()
        if (parted := _parting(name, answer, answers[name], noise)) is not None
    ]
    tokens = sum(_common(answer.tokens, answers[name].tokens) for name, answer in reference.items())
    return GreedyReport(len(reference), tokens, tuple(found))


def _parting(name: str, plain: Answer, other: Answer, noise: float) -> Divergence | None:
    at = _common(plain.tokens, other.tokens)
    tokens = [answer.tokens[at] if at < len(answer.tokens) else None for answer in (plain, other)]
    if tokens == [None, None]:
        return None
    told = [answer.log_probs[at] for answer in (plain, other) if at < len(answer.tokens)]
    gap = abs(told[0] - told[1]) if len(told) == 2 else _least_gap(told[0])
    return Divergence(name, at, tokens[0], tokens[1], gap, noise)


def _least_gap(log_prob: float) -> float:
    """To an end token, whose own log-probability is not told: it has at most what the other token leaves."""
    left = -math.expm1(min(log_prob, 0.0))
    return max(0.0, log_prob - math.log(left)) if left > 0 else math.inf


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of what both begin with."""
    for at, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return at
    return min(len(one), len(other))


def _change(one: Mapping[str, Answer], other: Mapping[str, Answer]) -> float:
    """The greatest change of a token's log-probability, along texts that are equal so far."""
    changes = [0.0]
    for name, answer in one.items():
        along = _common(answer.tokens, other[name].tokens)
        pairs = zip(answer.log_probs[:along], other[name].log_probs[:along], strict=True)
        changes += [abs(first - second) for first, second in pairs]
    return max(changes)


def _greedy_check(
    name: str, reference: Mapping[str, Answer], answers: Mapping[str, Answer], noise: float
) -> Check:
    report = compare(reference, answers, noise)
    outcome = f"{report.equal} of {report.prompts} prompts equal, {report.tokens} tokens, "
    outcome += f"{report.near_ties} near-ties, {report.bugs} bugs; along equal text log-probabilities change by up to "
    outcome += f"{_change(reference, answers):.2g}"
    return Check(name, outcome, report.lossless, report.table() if report.divergences else "")


def _control(reference: Mapping[str, Answer], drawn: Mapping[str, Answer], noise: float) -> Check:
    """Answers that are not greedy, judged as if they were."""
    report = compare(reference, drawn, noise)
    name = f"control: answers drawn at temperature {_CONTROL_TEMPERATURE:g}, judged as greedy ones"
    if report.bugs:
        return Check(name, f"{report.bugs} of {report.prompts} were caught", True)
    return Check(name, "none was caught, so the comparison above proves nothing: give more --count", None)


def _distribution(asking: _Asking, plain: Ask, drafting: Ask) -> Check:
    """Whether both servers draw from the same distribution, and whether another one would have been noticed."""
    name = "sampled, both servers' distributions"
    without = asking.drawn("plain", plain, 1.0, 0)
    p_value = permutation_p_value(without, asking.drawn("drafting", drafting, 1.0, 1), asking.settings.seed)
    control = asking.drawn("drafting", drafting, _CONTROL_TEMPERATURE, 2)
    control_p = permutation_p_value(without, control, asking.settings.seed)
    draws = sum(map(len, without.values()))
    if p_value < asking.settings.alpha:
        return Check(name, f"{draws} answers of each do not agree (p = {p_value:.2g})", False)
    outcome = f"{draws} answers of each agree (p = {p_value:.2g}); "
    drawn = f"answers drawn at temperature {_CONTROL_TEMPERATURE:g}"
    if control_p < asking.settings.alpha:
        return Check(name, f"{outcome}{drawn} were caught (p = {control_p:.2g})", True)
    return Check(name, f"{outcome}too few to tell, {drawn} pass as well (p = {control_p:.2g})", None)


def permutation_p_value(
    one: Mapping[str, Sequence[Answer]], other: Mapping[str, Sequence[Answer]], seed: int
) -> float:
    """Probability of differences such as these if both draw from one distribution.

    Two statistics, each with its own permutations within prompts, and twice the lower p-value: how likely the target
    finds the answers (their summed log-probabilities), and how often each first token comes.
    """
    random = np.random.default_rng(seed)
    statistics, permuted = np.zeros(2), np.zeros((_PERMUTATIONS, 2))
    for name, answers in one.items():
        together = [*answers, *other[name]]
        sums = np.array([sum(answer.log_probs) for answer in together])
        firsts = np.unique([answer.tokens[:1] or (-1,) for answer in together], return_inverse=True)[
            1
        ].ravel()
        counts = np.eye(firsts.max() + 1)[firsts]
        label = np.repeat([1.0, 0.0], [len(answers), len(other[name])])
        labels = random.permuted(np.tile(label, (_PERMUTATIONS + 1, 1)), axis=1)
        labels[0] = label
        found = np.stack([labels @ sums / label.sum() - sums.mean(), _distances(labels, counts)], 1)
        statistics += found[0]
        permuted += found[1:]
    # The sum of differences may be of either sign; distances are never negative.
    above = (np.abs(permuted) >= np.abs(statistics) - 1e-9).sum(0)
    return float(min(1.0, 2 * ((above + 1) / (_PERMUTATIONS + 1)).min()))


def _distances(labels: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Chi-square of the counts of one group, [P, N] labels of N answers, beside the other's."""
    share = labels.sum(1, keepdims=True) / labels.shape[1]
    expected = counts.sum(0) * share
    distances: NDArray[np.float64] = ((labels @ counts - expected) ** 2 / expected).sum(1)
    return distances


class _Asking:
    """Answers to all prompts."""

    def __init__(
        self, prompts: Mapping[str, str], settings: TwoServerSettings, record: Callable[[Output], None]
    ) -> None:
        self._prompts, self.settings, self._record = prompts, settings, record

    def greedy(self, arm: str, ask: Ask, concurrency: int) -> dict[str, Answer]:
        arm = f"{arm}, temperature 0, concurrency {concurrency}"
        wanted = [(name, 0) for name in self._prompts]
        return dict(self._asked(arm, ask, wanted, concurrency, 0.0, self.settings.max_tokens))

    def drawn_once(self, ask: Ask) -> dict[str, Answer]:
        """An answer to each prompt that is not greedy."""
        arm = f"drafting, temperature {_CONTROL_TEMPERATURE:g}"
        wanted = [(name, self.settings.seed) for name in self._prompts]
        most = self.settings.max_tokens
        return dict(self._asked(arm, ask, wanted, self.settings.concurrency[-1], _CONTROL_TEMPERATURE, most))

    def drawn(self, arm: str, ask: Ask, temperature: float, series: int) -> dict[str, list[Answer]]:
        """Short answers, several to each of some prompts; each series has seeds of its own."""
        names = list(self._prompts)[: self.settings.sampled_prompts]
        first = self.settings.seed + 1_000_000 * (series + 1)
        wanted = [(name, first + number) for name in names for number in range(self.settings.draws)]
        arm = f"{arm}, drawn, temperature {temperature:g}"
        most = self.settings.drawn_tokens
        found: dict[str, list[Answer]] = {name: [] for name in names}
        for name, answer in self._asked(arm, ask, wanted, self.settings.concurrency[-1], temperature, most):
            found[name].append(answer)
        return found

    def _asked(
        self,
        arm: str,
        ask: Ask,
        wanted: Sequence[tuple[str, int]],
        concurrency: int,
        temperature: float,
        most: int,
    ) -> list[tuple[str, Answer]]:
        def one(item: tuple[str, int]) -> tuple[str, Answer]:
            name, seed = item
            answer = ask(self._prompts[name], max_tokens=most, temperature=temperature, seed=seed)
            return name, answer

        with ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(one, wanted))
        for name, answer in answers:
            self._record(Output(name, arm, answer.tokens))
        return answers
