"""What drafts bring in time: several requests behind long contexts, each way of drafting in turns with plain decoding.

Each request has a document of its own, since requests that share rows would read them from the processor's cache. All
documents are read once and stay. Answers go on to their last token whatever they say, so a batch stays as large as it
is, and an arm's time is the one in which all its requests are decoded.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from deployments.spec import DeploymentSpec, SpecError
from engine.deployment import open_runner
from engine.engine import Engine
from engine.outputs import RequestOutput
from engine.request import GenerationRequest
from engine.runner import BLOCK_SIZE
from engine.scheduler import EngineConfig
from planner.bench.windows.documents import Document
from planner.bench.windows.measure import Grid, OneAtATime, Way, check_weights, section_of, speculator

PLAIN = "plain"
_CLOSED = (
    2  # blocks of a request that are its own: the one in which its document ends, and the one of its last row
)


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
        rates: tokens a second of all requests, round by round.
        ratios: to plain decoding in the same round.
        tokens_a_step: emitted by a request.
        equal: whether all answers were plain decoding's.
    """

    context: int
    batch: int
    arm: str
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


def check_batches(by_context: Mapping[int, Sequence[Document]], batches: Batches) -> None:
    """Find out whether there are documents enough.

    Raises:
        SpecError: there are not.
    """
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
    report: Callable[[str, float | None], None] = lambda line, share: None,
) -> list[Speed]:
    """Time every combination of window, choice and lookup beside plain decoding, with drafts as the spec says.

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
    arms: list[Way | None] = [None, *ways]
    found: list[Speed] = []
    done, all_ = 0, len(by_context) * len(batches.sizes) * batches.rounds * len(arms)
    for context, documents in by_context.items():
        prompts = [document.tokens[:context] for document in documents[: max(batches.sizes)]]
        for number, prompt in enumerate(prompts, start=1):
            report(f"{context} tokens: reading document {number} of {len(prompts)}", done / all_)
            clock.run([prompt], None, tokens=1)
        for size in batches.sizes:
            speeds = [Speed(context, size, PLAIN if way is None else way.name) for way in arms]
            for round_ in range(batches.rounds):
                order = list(zip(speeds, arms, strict=True))
                order = order[round_ % len(order) :] + order[: round_ % len(order)]
                answers: dict[str, list[list[int]]] = {}
                for speed, way in order:
                    report(f"{context} tokens, {size} at once: {speed.arm}", done / all_)
                    rate, speed.tokens_a_step, answers[speed.arm] = clock.run(
                        prompts[:size], way, tokens=grid.max_tokens
                    )
                    speed.rates.append(rate)
                    done += 1
                for speed in speeds:
                    speed.ratios.append(speed.rates[-1] / speeds[0].rates[-1])
                    speed.equal &= answers[speed.arm] == answers[PLAIN]
            found += speeds
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
        documents = {each.id for group in by_context.values() for each in group[: max(batches.sizes)]}
        own = math.ceil(grid.max_tokens / BLOCK_SIZE) + _CLOSED
        blocks = len(documents) * math.ceil(length / BLOCK_SIZE) + max(batches.sizes) * own
        runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=blocks)
        check_weights(runner, grid.choices)
        self._policy = OneAtATime(
            [speculator(section, way, adaptive=section.adaptive) for way in ways], adaptive=False
        )
        self._engine = Engine(
            runner,
            self._policy,
            EngineConfig(max_batch_size=max(batches.sizes), max_sequence_length=length),
        )

    def run(
        self, prompts: Sequence[tuple[int, ...]], way: Way | None, *, tokens: int
    ) -> tuple[float, float, list[list[int]]]:
        """Tokens a second once each request has its first one, tokens of a request's step meanwhile, and the answers.

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
        begun, before, steps = 0.0, 0, 0
        while not self._engine.idle:
            decoding = sum(len(answer) < tokens for answer in answers)
            self._engine.step()
            if begun:
                steps += decoding
            elif all(answers):
                begun, before = time.perf_counter(), sum(map(len, answers))
        ended = time.perf_counter()
        emitted = sum(map(len, answers)) - before
        return emitted / (ended - begun), emitted / max(steps, 1), answers
