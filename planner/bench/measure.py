"""Measures the embedded engine: step cost by verified tokens and by batch, tokens a second, memory bound.

Everything that is compared alternates within one run, since timings on shared machines drift by a factor of two:
each round measures every subject once, and ratios are medians of the rounds' own ratios.

Example::

    result = run_bench(Path("runs/engines/smollm2-135m-int8"), others={}, rounds=7)
    print(result.ratio("8 tokens", "1 token"))
"""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from deployments.engines import EmbeddedEngine
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_runner
from engine.engine import Engine
from engine.manifest import MODEL_NAME
from engine.policy import StaticPolicy
from engine.request import GenerationRequest
from engine.runner import SequenceInput
from engine.scheduler import EngineConfig
from engine.verification import verify_greedy
from speculators.registry import create
from speculators.tree import TokenTree

Item = TypeVar("Item")

CONTEXT = 256  # tokens in the cache before a measured step
TOKENS = (1, 2, 4, 8, 16)
BATCHES = (1, 2, 4, 8, 16)
_REPEATS = 8  # steps of one subject in one round,
_SECONDS = 2.0  # or as many as fit in this, of large models
MOST_TOKENS = 32  # of a request in a measured step
_ROWS_OF_A_PAGE = 8  # least cache rows in 4 KiB: heads of 128 in fp32
_GENERATED = 96  # tokens of one generation in one round
_ENGINE = EmbeddedEngine()

Subject = Callable[[], float]


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Raw figures by subject, one a round: milliseconds a step, or tokens a second."""

    engine: str
    weight_bytes: int
    rounds: Mapping[str, list[float]]
    environment: Mapping[str, Any] = field(default_factory=dict)

    def median(self, subject: str) -> float:
        """Median over the rounds."""
        return statistics.median(self.rounds[subject])

    def spread(self, subject: str) -> tuple[float, float]:
        """Least and greatest over the rounds."""
        return min(self.rounds[subject]), max(self.rounds[subject])

    def ratio(self, subject: str, base: str) -> float:
        """Median of the rounds' own ratios of two subjects."""
        pairs = zip(self.rounds[subject], self.rounds[base], strict=True)
        return statistics.median(value / reference for value, reference in pairs)

    @property
    def bound_ms(self) -> float:
        """Least time of a step at batch 1: reading every weight once at the measured bandwidth."""
        return self.weight_bytes / (self.median("bandwidth GB/s") * 1e9) * 1e3

    def to_json(self) -> str:
        """One line for programs."""
        figures = {name: [round(value, 4) for value in values] for name, values in self.rounds.items()}
        return json.dumps(
            {
                "engine": self.engine,
                "weight_bytes": self.weight_bytes,
                "bound_ms": round(self.bound_ms, 3),
                "rounds": figures,
                "environment": dict(self.environment),
            }
        )


def run_bench(
    engine_directory: Path,
    *,
    others: Mapping[str, Subject],
    rounds: int,
    engine: EmbeddedEngine = _ENGINE,
    provenance: Mapping[str, Any] | None = None,
    report: Callable[[str, float], None] = lambda line, share: None,
) -> BenchResult:
    """Measure the engine in a directory, alternating with other subjects.

    Args:
        engine_directory: a compiled engine.
        others: what else to measure, each a call that returns its figure (the served engine).
        rounds: how often each subject is measured; one more round warms up.
        engine: what runs it, and on how many threads.
        provenance: what to write beside the figures: command, commit, machine.
        report: gets what is measured, and the share of all that is done.

    Raises:
        EngineError: the engine cannot be loaded.
    """
    runner = open_runner(engine, engine_directory, num_blocks=BATCHES[-1] * 64)
    weight_bytes = (engine_directory / f"{MODEL_NAME}.data").stat().st_size
    subjects: dict[str, Subject] = {
        **_steps(runner),
        **_generations(runner),
        "bandwidth GB/s": Bandwidth(weight_bytes, engine.threads or cores()),
        **others,
    }
    figures = alternate(subjects, rounds, report)
    environment = {
        **(provenance or {}),
        "backend": engine.backend,
        "engine_versions": runner.manifest.versions,
        "context": CONTEXT,
    }
    return BenchResult(engine_directory.name, weight_bytes, figures, environment)


def rotated(items: Sequence[Item], by: int) -> list[Item]:
    """All of them, beginning with another one each time."""
    first = by % len(items)
    return [*items[first:], *items[:first]]


def alternate(
    subjects: Mapping[str, Subject], rounds: int, report: Callable[[str, float], None]
) -> dict[str, list[float]]:
    """What each subject measures in each round, after one round that warms up; see `run_bench` for the rest."""
    figures: dict[str, list[float]] = {name: [] for name in subjects}
    for number in range(rounds + 1):
        title = "warming up" if number == 0 else f"round {number} of {rounds}"
        for place, (name, subject) in enumerate(subjects.items()):
            report(f"{title}, {name}", (number + place / len(subjects)) / (rounds + 1))
            figure = subject()
            if number:
                figures[name].append(figure)
    return figures


def _steps(runner: CompiledRunner) -> dict[str, Subject]:
    """Verification steps: of one request by number of tokens, and of one token a request by number of requests."""
    fill_cache(runner, range(BATCHES[-1]))
    subjects: dict[str, Subject] = {}
    for count in TOKENS:
        subjects[f"{count} token" + "s" * (count > 1)] = VerificationStep(runner, 1, count)
    for batch in BATCHES[1:]:
        subjects[f"batch {batch}"] = VerificationStep(runner, batch, 1)
    return subjects


def fill_cache(runner: CompiledRunner, requests: Iterable[int], context: int | None = None) -> None:
    """Write into the memory that steps of these requests look at.

    Once is enough: an untouched cache is one shared page of zeros and costs nothing to read, and what the rows hold
    does not matter. So a row in each page will do, and no prompt is read, which takes minutes where contexts are long.
    """
    blocks = [block for row in requests for block in _blocks(runner, row, context or CONTEXT)]
    for place in range(0, runner.block_size, _ROWS_OF_A_PAGE):
        for begin in range(0, len(blocks), CONTEXT):
            part = blocks[begin : begin + CONTEXT]
            runner.forward([SequenceInput([place], place, [block]) for block in part])


def _blocks(runner: CompiledRunner, row: int, context: int) -> range:
    count = -(-(context + MOST_TOKENS) // runner.block_size)
    return range(row * count, (row + 1) * count)


def repeated(measure: Callable[[], float], repeats: int) -> float:
    """Median of `repeats` measurements in milliseconds, or of two and as many more as take two seconds."""
    end = time.perf_counter() + _SECONDS
    times = [measure(), measure()]
    while len(times) < repeats and time.perf_counter() < end:
        times.append(measure())
    return statistics.median(times)


class VerificationStep:
    """Median milliseconds of a step: forward pass and greedy verification, on a cache that `fill_cache` has filled.

    Args:
        runner: what runs it.
        batch: requests.
        tokens: of each.
        context: tokens of each that stand before; None: CONTEXT.
        filled: with how many `fill_cache` was called; the context or more.
    """

    def __init__(
        self,
        runner: CompiledRunner,
        batch: int,
        tokens: int,
        context: int | None = None,
        filled: int | None = None,
    ) -> None:
        context = context or CONTEXT
        drafted = list(range(100, 100 + tokens))
        self._runner = runner
        self._tree = TokenTree.chain(drafted[1:])
        blocks = [_blocks(runner, row, filled or context) for row in range(batch)]
        self.batch = [SequenceInput(drafted, context, each) for each in blocks]

    def __call__(self) -> float:
        return repeated(self._step, _REPEATS)

    def _step(self) -> float:
        started = time.perf_counter()
        logits = self._runner.forward(self.batch)
        for row in range(len(self.batch)):
            rows = logits[row * (len(self._tree) + 1) : (row + 1) * (len(self._tree) + 1)]
            verify_greedy(self._tree, rows, row)
        return (time.perf_counter() - started) * 1e3


class PromptChunk:
    """Median milliseconds of a step in which one request reads a chunk of its prompt.

    Args:
        runner: what runs it.
        tokens: of the chunk.
        past: tokens that were read before it.
        filled: with how many `fill_cache` was called; room for past and chunk.
    """

    def __init__(self, runner: CompiledRunner, tokens: int, past: int, filled: int) -> None:
        self._runner = runner
        chunk = [token % runner.vocab_size for token in range(tokens)]
        self._batch = [
            SequenceInput(chunk, past, _blocks(runner, 0, filled), is_prompt=True, logits_from=tokens)
        ]

    def __call__(self) -> float:
        return repeated(self._step, _REPEATS)

    def _step(self) -> float:
        started = time.perf_counter()
        self._runner.forward(self._batch)
        return (time.perf_counter() - started) * 1e3


def _generations(runner: CompiledRunner) -> dict[str, Subject]:
    """Plain decoding through the whole engine, tokens a second after the prompts."""

    def measure(batch: int) -> float:
        config = EngineConfig(max_batch_size=batch, max_sequence_length=runner.max_sequence_length)
        engine = Engine(runner, StaticPolicy([create("none")]), config)
        stamps: list[int] = []
        for row in range(batch):
            prompt = tuple((row + position) % runner.vocab_size for position in range(CONTEXT))
            engine.submit(
                GenerationRequest(prompt, _GENERATED), lambda event: stamps.append(time.perf_counter_ns())
            )
        while engine.step():
            pass
        # From the step after the last prompt has been read, when every request decodes.
        window = stamps[-batch * (_GENERATED // 2) :]
        return (len(window) - batch) / (window[-1] - window[batch - 1]) * 1e9

    return {f"engine, batch {batch}, tokens/s": lambda batch=batch: measure(batch) for batch in (1, 8)}  # type: ignore[misc]


class Bandwidth:
    """GB/s at which as many threads as the engine has read a buffer as large as the weights, again and again."""

    def __init__(self, size: int, threads: int) -> None:
        self._parts = np.array_split(np.ones(size // 8, np.int64), threads)

    def __call__(self) -> float:
        times = []
        for _ in range(_REPEATS):
            threads = [threading.Thread(target=part.max) for part in self._parts]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            times.append(time.perf_counter() - started)
        return sum(part.nbytes for part in self._parts) / statistics.median(times) / 1e9


def cores() -> int:
    """Of this machine."""
    return os.cpu_count() or 1
