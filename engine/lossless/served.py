"""Is the served output the target's own? What `drafthouse verify` runs.

Output is asked of a running server, through a callable, so that the whole path is under test. Three checks:

1. Greedy: with and without speculation, at every concurrency asked for, token for token. The engine promises
   equal bits (`engine.runner`); where outputs differ all the same, the gap between the two logits is
   compared with the noise between step shapes in that very context.
2. Sampled with the same seed: equal token for token, since deterministic drafts take no part in the drawing.
3. Sampled, by statistics: the verifier's joint distribution on enumerable toy targets with faulty verifiers as
   controls, and the probability integral transform of the served tokens under the real model.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.lossless.faults import Fault
from engine.lossless.greedy import GreedyReport, GreedyRun, compare_greedy
from engine.lossless.joint import JointCheck, joint_checks
from engine.lossless.transform import LEAST_POSITIONS, TransformTest
from engine.request import SamplingParams
from engine.runner import Runner, SequenceInput
from engine.sampling import target_distribution

Tokens = tuple[int, ...]
_BATCH = 8  # neighbours, and tokens of a chain, in the step shapes that noise is measured between
_CONTROL_TEMPERATURE = 1.2
_SHAPES = ("token by token", "batch of 8", "chain of 8")


class Generate(Protocol):
    """Asks the server to continue a prompt."""

    def __call__(
        self, prompt: Tokens, *, max_tokens: int, speculate: bool, temperature: float, seed: int
    ) -> Sequence[int]:
        """The emitted tokens, end token excluded."""


@dataclass(frozen=True, slots=True)
class VerifySettings:
    """What to check, and how thoroughly.

    `alpha` is the probability that a correct engine fails one of the statistical checks.
    """

    max_tokens: int = 128
    concurrency: tuple[int, ...] = (1, 8)
    sampled_prompts: int = 24
    joint_runs: int = 200_000
    control_runs: int = 20_000
    alpha: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report: what was checked, what came out, whether that is as it must be.

    `passed` is None where there was too little to tell; the outcome says what would be enough.
    """

    name: str
    outcome: str
    passed: bool | None
    details: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """One answer of the server, kept as raw record."""

    prompt: str
    arm: str
    tokens: Tokens


def verify_served(
    prompts: Mapping[str, Tokens],
    generate: Generate,
    runner: Runner,
    end_ids: frozenset[int],
    settings: VerifySettings,
    record: Callable[[Output], None],
) -> Iterator[Check]:
    """Run all checks; each result is given as soon as it is there.

    Args:
        prompts: token ids by name.
        generate: asks the server; called from several threads.
        runner: the same engine in process, to score tokens and step shapes; its cache must hold eight of the
            longest prompts with their outputs.
        end_ids: tokens that end the output.
        settings: what to check.
        record: gets every answer.
    """
    served = _Served(prompts, generate, settings, record)
    reference = served.greedy(speculate=False, concurrency=settings.concurrency[0])
    for concurrency in settings.concurrency:
        for speculate in (False, True):
            if (speculate, concurrency) == (False, settings.concurrency[0]):
                continue
            outputs = served.greedy(speculate=speculate, concurrency=concurrency)
            yield _greedy_check(prompts, reference, outputs, runner, end_ids, speculate, concurrency)
    plain, speculative = served.sampled(speculate=False), served.sampled(speculate=True)
    equal = sum(plain[name] == speculative[name] for name in plain)
    outcome = f"{equal} of {len(plain)} prompts equal, {sum(map(len, plain.values()))} tokens"
    yield Check("sampled, same seed, speculation off and on", outcome, equal == len(plain))
    yield _transform_check(prompts, speculative, runner, end_ids, settings)
    checks = joint_checks(settings.joint_runs, settings.control_runs, settings.alpha, settings.seed)
    for scenario, joint in itertools.groupby(checks, lambda check: check.scenario):
        yield _joint_check(scenario, list(joint))


def _joint_check(scenario: str, checks: Sequence[JointCheck]) -> Check:
    """The engine's verifier on one toy scenario, and whether the check would have caught faulty ones."""
    (own,), controls = [
        [check for check in checks if bool(check.fault) is faulty] for faulty in (False, True)
    ]
    verb = "do not agree" if own.fit.rejected else "agree"
    outcome = (
        f"{own.fit.samples} sequences {verb} with the target's distribution (p = {own.fit.p_value:.2g}); "
    )
    missed = [_words(check.fault) for check in controls if check.fault and not check.passed]
    if missed:
        outcome += f"this proves nothing, faulty verifiers pass as well: {', '.join(missed)}"
    else:
        outcome += f"all {len(controls)} faulty verifiers that were tried were caught"
    return Check(f"joint distribution, {scenario}", outcome, all(check.passed for check in checks))


def _words(fault: Fault) -> str:
    return fault.name.lower().replace("_", " ")


class _Served:
    """Answers of the server for all prompts."""

    def __init__(
        self,
        prompts: Mapping[str, Tokens],
        generate: Generate,
        settings: VerifySettings,
        record: Callable[[Output], None],
    ) -> None:
        self._prompts, self._generate, self._settings, self._record = prompts, generate, settings, record

    def greedy(self, *, speculate: bool, concurrency: int) -> dict[str, Tokens]:
        return self._ask(self._prompts, concurrency, speculate=speculate, temperature=0.0)

    def sampled(self, *, speculate: bool) -> dict[str, Tokens]:
        chosen = dict(list(self._prompts.items())[: self._settings.sampled_prompts])
        return self._ask(chosen, self._settings.concurrency[-1], speculate=speculate, temperature=1.0)

    def _ask(
        self, prompts: Mapping[str, Tokens], concurrency: int, *, speculate: bool, temperature: float
    ) -> dict[str, Tokens]:
        arm = f"{'speculative' if speculate else 'plain'}, temperature {temperature:g}, concurrency {concurrency}"

        def one(numbered: tuple[int, tuple[str, Tokens]]) -> Output:
            seed, (name, prompt) = numbered
            most = self._settings.max_tokens
            tokens = self._generate(
                prompt,
                max_tokens=most,
                speculate=speculate,
                temperature=temperature,
                seed=self._settings.seed + seed,
            )
            return Output(name, arm, tuple(tokens))

        with ThreadPoolExecutor(concurrency) as pool:
            outputs = list(pool.map(one, enumerate(prompts.items())))
        for output in outputs:
            self._record(output)
        return {output.prompt: output.tokens for output in outputs}


def _greedy_check(
    prompts: Mapping[str, Tokens],
    reference: Mapping[str, Tokens],
    outputs: Mapping[str, Tokens],
    runner: Runner,
    end_ids: frozenset[int],
    speculate: bool,
    concurrency: int,
) -> Check:
    runs = [GreedyRun(name, prompts[name], reference[name], outputs[name]) for name in prompts]
    report: GreedyReport = compare_greedy(runs, _Scorer(runner).score, _SHAPES, end_ids)
    arm = "with" if speculate else "without"
    outcome = f"{report.equal} of {report.prompts} prompts equal, {report.tokens} tokens, "
    outcome += f"{report.near_ties} near-ties, {report.bugs} bugs"
    details = report.table() if report.divergences else ""
    return Check(f"greedy, {arm} speculation, concurrency {concurrency}", outcome, report.lossless, details)


def _transform_check(
    prompts: Mapping[str, Tokens],
    outputs: Mapping[str, Tokens],
    runner: Runner,
    end_ids: frozenset[int],
    settings: VerifySettings,
) -> Check:
    """Test every draw of every output, the one that ended it included: without it, the others would be biased.

    Which of several end tokens it was is not known, so they count as one token.
    """
    test = TransformTest(_CONTROL_TEMPERATURE, settings.seed)
    params = SamplingParams(temperature=1.0)
    scorer, ends = _Scorer(runner), sorted(end_ids)
    for name, tokens in outputs.items():
        draws = tokens if len(tokens) == settings.max_tokens else (*tokens, *ends[:1])
        for logits, token in zip(scorer.rows(prompts[name], draws), draws, strict=True):
            probs = target_distribution(logits, params)
            if ends:
                probs[ends[0]], probs[ends[1:]] = probs[ends].sum(), 0
            test.observe(probs, token)
    return Check(
        "probability integral transform, with speculation", *_transform_outcome(test, settings.alpha)
    )


def _transform_outcome(test: TransformTest, alpha: float) -> tuple[str, bool | None]:
    more = "give more --count or --max-tokens"
    if test.usable < LEAST_POSITIONS and not test.impossible:
        return f"not tested: {test.usable} tokens, {LEAST_POSITIONS} or more are needed; {more}", None
    if test.usable < LEAST_POSITIONS:
        return f"{test.impossible} tokens were impossible for the target", False
    report = test.report(alpha)
    emitted, control = report.emitted, report.control
    p_value, control_p = (min(each.rank_p_value, each.id_p_value) for each in (emitted, control))
    if emitted.rejected:
        return (
            f"{emitted.positions} tokens do not agree with the target's distribution (p = {p_value:.2g})",
            False,
        )
    outcome = f"{emitted.positions} tokens agree with the target's distribution (p = {p_value:.2g}); "
    drawn = f"tokens drawn at temperature {_CONTROL_TEMPERATURE}"
    if control.rejected:
        return f"{outcome}{drawn} were caught (p = {control_p:.2g})", True
    return f"{outcome}too few to tell, {drawn} pass as well (p = {control_p:.2g}): {more}", None


class _Scorer:
    """Logits of the same engine in process, in steps of one's choice."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._blocks = runner.num_blocks // _BATCH

    def rows(self, prompt: Tokens, tokens: Tokens) -> NDArray[np.float32]:
        """Logits [T, V] that the T tokens were drawn from."""
        if not tokens:
            return np.zeros((0, self._runner.vocab_size), np.float32)
        self._read(prompt, 0)
        whole = (prompt[-1], *tokens[:-1])
        item = SequenceInput(whole, len(prompt) - 1, self._table(0))
        return self._runner.forward([item])

    def score(self, prefix: Sequence[int], shape: str) -> NDArray[np.float32]:
        """Logits [V] after `prefix`, its last tokens run in steps of `shape`."""
        tail = min(_BATCH, len(prefix) - 1)
        head, last = tuple(prefix[:-tail]), tuple(prefix[-tail:])
        rows = range(_BATCH if shape == _SHAPES[1] else 1)
        for row in rows:
            self._read((*head, 0), row)
        steps = [last] if shape == _SHAPES[2] else [(token,) for token in last]
        past = len(head)
        for tokens in steps:
            logits = self._runner.forward([SequenceInput(tokens, past, self._table(row)) for row in rows])
            past += len(tokens)
        last_row: NDArray[np.float32] = logits[len(steps[-1]) - 1].copy()
        return last_row

    def _read(self, prompt: Tokens, row: int) -> None:
        """Put all but the last token of a prompt into the cache."""
        if len(prompt) > 1:
            self._runner.forward(
                [SequenceInput(prompt[:-1], 0, self._table(row), is_prompt=True, logits_from=len(prompt) - 1)]
            )

    def _table(self, row: int) -> range:
        return range(row * self._blocks, (row + 1) * self._blocks)


def summary(checks: Sequence[Check]) -> dict[str, Any]:
    """The report as plain data for JSON; `complete` says whether every check could tell."""
    return {
        "passed": not any(check.passed is False for check in checks),
        "complete": all(check.passed is not None for check in checks),
        "checks": [
            {"name": check.name, "outcome": check.outcome, "passed": check.passed, "details": check.details}
            for check in checks
        ],
    }
