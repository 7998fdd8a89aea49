"""What drafts bring in time: several requests behind long contexts, each way of drafting in turns with plain decoding.

Each request has a document of its own, since requests that share rows would read them from the processor's cache. All
documents are read once and stay, and all are asked, in groups of as many as are decoded at once. Answers go on to their
last token whatever they say; of a group what counts is from where each request has its first token to where the first
one ends, so that the batch is whole all the time, however differently drafts are accepted.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from deployments.spec import DeploymentSpec, SpecError
from engine.engine import Engine
from engine.outputs import RequestOutput
from engine.request import GenerationRequest
from engine.runner import BLOCK_SIZE
from engine.scheduler import EngineConfig
from planner.bench.measure import rotated
from planner.bench.windows.documents import Document
from planner.bench.windows.measure import Grid, Way, opened, section_of

PLAIN = "plain"
_FEWEST_TOKENS = 16  # of an answer
# Blocks of a request that are its own besides those of its answer: where its document ends, and where its last row is.
_ENDS = 2


@dataclass(frozen=True, slots=True)
class Batches:
    """What is timed.

    Attributes:
        sizes: requests at once.
        lookups: tokens that a lookup guesses ahead of each run on the window.
        rounds: how often each arm is timed.
    """

    sizes: Sequence[int]
    lookups: Sequence[int]
    rounds: int


@dataclass(slots=True)
class Speed:
    """An arm with so many requests behind one context.

    Attributes:
        arm: `PLAIN`, or how drafts are made.
        documents: how many were asked.
        rates: tokens a second of all requests, round by round.
        ratios: to plain decoding in the same round.
        tokens_a_step: emitted by a request.
        equal: whether all answers were plain decoding's.
    """

    context: int
    batch: int
    arm: str
    documents: int
    rates: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    tokens_a_step: float = 1.0
    equal: bool = True

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return statistics.median(self.ratios)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Timing:
    """Tokens, the seconds in which they came, and the steps of all requests meanwhile."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0

    def add(self, other: _Timing) -> None:
        """Sum up."""
        self.tokens += other.tokens
        self.seconds += other.seconds
        self.steps += other.steps


def check_batches(by_context: Mapping[int, Sequence[Document]], grid: Grid, batches: Batches) -> None:
    """Find out whether there are documents enough, and tokens.

    Raises:
        SpecError: there are not.
    """
    if batches.sizes and grid.max_tokens < _FEWEST_TOKENS:
        raise SpecError(f"--batch needs --max-tokens {_FEWEST_TOKENS} or more, to have something to time")
    for context, documents in by_context.items():
        if (most := max(batches.sizes, default=0)) > len(documents):
            raise SpecError(
                f"--batch {most} needs as many documents of {context} tokens (--count); there are {len(documents)}"
            )


def time_windows(
    spec: DeploymentSpec,
    by_context: Mapping[int, Sequence[Document]],
    grid: Grid,
    batches: Batches,
    record: Callable[[Mapping[str, Any]], None],
    report: Callable[[str, float | None], None],
) -> list[Speed]:
    """Time every combination of window, choice and lookup beside plain decoding, with drafts as the spec says.

    Args:
        spec: a deployment that has been built.
        by_context: the documents of each context.
        grid: windows, choices, and tokens of an answer.
        batches: how they are timed.
        record: gets each group's figures.
        report: gets what goes on, and the share that is done.

    Raises:
        SpecError: the deployment cannot be measured.
        EngineError: its engine cannot be opened, or does not tell what a choice goes by.
    """
    report("loading the engine", None)
    ways = [
        Way(window, choice, lookup)
        for window in grid.windows
        for choice in grid.choices
        for lookup in batches.lookups
    ]
    clock = _Clock(spec, by_context, grid, batches, ways)
    arms: dict[str, Way | None] = {PLAIN: None, **{way.name: way for way in ways}}
    found: list[Speed] = []
    done, all_ = 0, len(by_context) * len(batches.sizes) * batches.rounds
    for context, documents in by_context.items():
        prompts = {document.id: document.tokens[:context] for document in documents}
        for number, prompt in enumerate(prompts.values(), start=1):
            report(f"{context} tokens: reading document {number} of {len(prompts)}", done / all_)
            clock.run([prompt], None, tokens=1)
        for size in batches.sizes:
            whole = range(0, len(prompts) - size + 1, size)
            groups = [list(prompts)[first : first + size] for first in whole]
            speeds = {arm: Speed(context, size, arm, size * len(groups)) for arm in arms}
            for round_ in range(batches.rounds):
                sums = {arm: _Timing() for arm in arms}
                for number, group in enumerate(groups):
                    answers: dict[str, list[list[int]]] = {}
                    for arm in rotated(list(arms), round_ + number):
                        report(f"{context} tokens, {size} at once: {arm}", done / all_)
                        asked = [prompts[name] for name in group]
                        timing, answers[arm] = clock.run(asked, arms[arm], tokens=grid.max_tokens)
                        sums[arm].add(timing)
                        told = {"context": context, "arm": arm, "round": round_, "documents": group}
                        record({**told, **asdict(timing), "answers": answers[arm]})
                    for arm, speed in speeds.items():
                        speed.equal &= answers[arm] == answers[PLAIN]
                for arm, speed in speeds.items():
                    speed.rates.append(sums[arm].tokens / sums[arm].seconds)
                    speed.ratios.append(speed.rates[-1] / speeds[PLAIN].rates[-1])
                    speed.tokens_a_step = sums[arm].tokens / sums[arm].steps
                done += 1
            found += speeds.values()
    return found


class _Clock:
    """The engine, with a speculator for each way of drafting, and what each takes."""

    def __init__(
        self,
        spec: DeploymentSpec,
        by_context: Mapping[int, Sequence[Document]],
        grid: Grid,
        batches: Batches,
        ways: Sequence[Way],
    ) -> None:
        section, length = section_of(spec, grid), max(grid.contexts) + grid.max_tokens
        documents = {each.id for group in by_context.values() for each in group}
        own = math.ceil(grid.max_tokens / BLOCK_SIZE) + _ENDS
        blocks = len(documents) * math.ceil(length / BLOCK_SIZE) + max(batches.sizes) * own
        runner, self._policy = opened(spec, section, ways, adaptive=section.adaptive, num_blocks=blocks)
        self._engine = Engine(
            runner,
            self._policy,
            EngineConfig(max_batch_size=max(batches.sizes), max_sequence_length=length),
        )

    def run(
        self, prompts: Sequence[tuple[int, ...]], way: Way | None, *, tokens: int
    ) -> tuple[_Timing, list[list[int]]]:
        """Ask prompts at once; returns what came while all were decoded, and the answers of so many tokens.

        Raises:
            Exception: a request failed.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        self._policy.chosen = "" if way is None else way.name

        def taking(answer: list[int]) -> Callable[[RequestOutput], None]:
            def take(output: RequestOutput) -> None:
                if output.error:
                    raise output.error
                answer.extend(output.tokens)

            return take

        for prompt, answer in zip(prompts, answers, strict=True):
            length = 0 if way is None else None
            self._engine.submit(GenerationRequest(prompt, tokens, draft_length=length), taking(answer))
        begun, timing = 0.0, _Timing()
        while not self._engine.idle:
            whole = bool(begun) and all(len(answer) < tokens for answer in answers)
            before = sum(map(len, answers))
            self._engine.step()
            if whole:
                timing.tokens += sum(map(len, answers)) - before
                timing.steps += len(answers)
                timing.seconds = time.perf_counter() - begun
            elif not begun and all(answers):
                begun = time.perf_counter()
        return timing, answers
