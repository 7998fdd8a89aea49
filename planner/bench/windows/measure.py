"""Answers with every combination of window and choice, on one engine that keeps what it has read.

A document is read by plain decoding, and each combination's request takes those rows over, as requests that begin
alike do when served. That changes no row, but a choice by attention goes by what the last tokens of the prompt look at,
which are told in the step that reads them. A request reads its last 2 to 33 tokens itself, so a document is cut where
these are as many as are weighed without a cache, or where they are weighed as a part of their own (`cut`).

Drafts have their full length at every step, and those that the end of the answer would have shortened are not counted:
the answer goes on a little longer than it is measured. Nor is the one that an end token ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from deployments.spec import DeploymentSpec, SpecError
from deployments.speculation import WindowedSelfDrafting
from engine.compiled_runner import CompiledRunner
from engine.deployment import open_runner
from engine.engine import Engine
from engine.manifest import EngineError
from engine.outputs import RequestOutput
from engine.policy import StaticPolicy
from engine.request import GenerationRequest
from engine.runner import BLOCK_SIZE
from engine.running import RunningRequest
from engine.scheduler import EngineConfig
from planner.bench.windows.documents import Document, contexts_of
from planner.bench.windows.records import Key, WindowRecord
from planner.profile.records import RecordingPolicy
from speculators.windowed import Choice, WindowedSpeculator

SHORTEST = 64  # of a context: a block, and the tokens that are weighed


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured: each window with each choice behind each context, in answers of `max_tokens`."""

    contexts: Sequence[int]
    windows: Sequence[int]
    choices: Sequence[Choice]
    max_tokens: int

    def keys(self, by_context: Mapping[int, Sequence[Document]]) -> Iterator[Key]:
        """Everything, in the order of the table."""
        for context, documents in by_context.items():
            for document in documents:
                yield from self.of(document, context)

    def of(self, document: Document, context: int) -> Iterator[Key]:
        """Everything behind one context."""
        for window in self.windows:
            for choice in self.choices:
                yield document.id, context, window, choice


@dataclass(frozen=True, slots=True)
class Way:
    """How drafts are made: on how many rows, which, and how many tokens a lookup guesses ahead."""

    window: int
    choice: Choice
    lookup: int = 0

    @property
    def name(self) -> str:
        """In tables."""
        return f"{self.choice} of {self.window}" + (f", lookup {self.lookup}" if self.lookup else "")


def section_of(spec: DeploymentSpec, grid: Grid) -> WindowedSelfDrafting:
    """How the deployment drafts, if it can be measured.

    Raises:
        SpecError: it is for another engine, drafts otherwise, or takes no such context.
    """
    limit, section = spec.embedded.max_sequence_length, spec.speculation
    if not isinstance(section, WindowedSelfDrafting):
        raise SpecError(f"{spec.name} has speculation.method: {section.method}; windowed is what is measured")
    most = limit - _answered(grid.max_tokens, section.draft_length)
    for context in grid.contexts:
        if not SHORTEST <= context <= most:
            raise SpecError(
                f"--context {context} does not fit: {SHORTEST} to {most} tokens do, beside answers of "
                f"{grid.max_tokens} (engine.max_sequence_length is {limit})"
            )
    return section


def cut(context: int, weighed: int, block_size: int) -> int:
    """The longest prompt up to a context whose end is weighed alike whether its beginning is taken over or not.

    Args:
        context: tokens.
        weighed: most tokens that are weighed; 0: none are.
        block_size: rows that are taken over together.
    """
    for length in range(context, 0, -1):
        read = 2 + (length - 2) % block_size
        if read == weighed or read >= weighed + 2:  # no part of a prompt is a single token
            return length
    raise ValueError(f"a block of {block_size} rows is shorter than the {weighed} tokens that are weighed")


def measure_windows(
    spec: DeploymentSpec,
    by_context: Mapping[int, Sequence[Document]],
    grid: Grid,
    wanted: set[Key],
    record: Callable[[WindowRecord], None],
    report: Callable[[str, float | None], None] = lambda line, share: None,
) -> None:
    """Measure what is wanted of a grid, document by document.

    Args:
        spec: a deployment that has been built.
        by_context: the documents of each context.
        grid: all that there is.
        wanted: what is measured of it.
        record: gets each answer's figures.
        report: gets what goes on, and the share that is done.

    Raises:
        SpecError: the deployment cannot be measured.
        EngineError: its engine cannot be opened, or does not tell what a choice goes by.
    """
    report("loading the engine", None)
    bench = _Bench(spec, grid)
    done = 0
    documents = list(dict.fromkeys(each for group in by_context.values() for each in group))
    for number, document in enumerate(documents, start=1):
        for context in contexts_of(document, by_context):
            keys = [key for key in grid.of(document, context) if key in wanted]
            if not keys:
                continue
            where = f"document {number} of {len(documents)}, {context} tokens"
            report(f"{where}: reading", done / len(wanted))
            prompt = document.tokens[: cut(context, bench.weighed, bench.block_size)]
            plain = bench.plain(prompt)
            for key in keys:
                report(f"{where}: window {key[2]}, {key[3]}", done / len(wanted))
                record(bench.drafted(key, prompt, plain))
                done += 1


class OneAtATime(StaticPolicy):
    """Lets the speculator `chosen` draft for each request that comes."""

    chosen = ""

    def begin(self, item: RunningRequest) -> Sequence[str]:
        return [self.chosen] if super().begin(item) else ()


class _Bench:
    """The engine, with a speculator for each window and choice; one request runs at a time."""

    def __init__(self, spec: DeploymentSpec, grid: Grid) -> None:
        section = section_of(spec, grid)
        self._max_tokens = grid.max_tokens
        self._answered = _answered(grid.max_tokens, section.draft_length)
        length = max(grid.contexts) + self._answered
        # Room for a document, and for the one before it to be kept until that is read.
        blocks = 2 * math.ceil(length / BLOCK_SIZE)
        ways = [Way(window, choice) for window in grid.windows for choice in grid.choices]
        runner, self._policy = opened(spec, section, ways, adaptive=False, num_blocks=blocks)
        self._watched = RecordingPolicy(self._policy)
        self._engine = Engine(
            runner, self._watched, EngineConfig(max_batch_size=1, max_sequence_length=length)
        )
        self._end_ids = frozenset(runner.manifest.end_ids)
        self.weighed, self.block_size = runner.most_weighed, runner.block_size

    def plain(self, prompt: tuple[int, ...]) -> list[int]:
        """The answer without drafts."""
        tokens, _ = self._answer(prompt, draft_length=0)
        return tokens

    def drafted(self, key: Key, prompt: tuple[int, ...], plain: Sequence[int]) -> WindowRecord:
        """What one combination makes of it."""
        document, context, window, choice = key
        self._policy.chosen = Way(window, choice).name
        started = time.monotonic()
        tokens, last = self._answer(prompt, draft_length=None)
        drafts = self._watched.drafts.pop(last.request_id)
        end = len(prompt) + self._max_tokens
        return WindowRecord(
            document=document,
            context=context,
            prompt_tokens=len(prompt),
            read_tokens=len(prompt) - last.metrics.kv_reused_blocks * self.block_size,
            window=window,
            choice=choice,
            accepted=tuple(len(draft.path) for draft in drafts if draft.context < end),
            equal=tokens == plain,
            seconds=round(time.monotonic() - started, 3),
        )

    def _answer(
        self, prompt: tuple[int, ...], *, draft_length: int | None
    ) -> tuple[list[int], RequestOutput]:
        outputs: list[RequestOutput] = []
        request = GenerationRequest(prompt, self._answered, end_ids=self._end_ids, draft_length=draft_length)
        self._engine.submit(request, outputs.append)
        while self._engine.step():
            pass
        if error := outputs[-1].error:
            raise error
        return [token for output in outputs for token in output.tokens], outputs[-1]


def _answered(max_tokens: int, draft_length: int) -> int:
    """Tokens of an answer in which each draft that begins in the first `max_tokens` is whole, and not the last."""
    return max_tokens + draft_length + 1


def opened(
    spec: DeploymentSpec,
    section: WindowedSelfDrafting,
    ways: Sequence[Way],
    *,
    adaptive: bool,
    num_blocks: int,
) -> tuple[CompiledRunner, OneAtATime]:
    """The deployment's target, and a policy with a speculator for each way of drafting.

    Raises:
        EngineError: the engine cannot be opened, or does not tell what a choice goes by.
    """
    runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=num_blocks)
    if not runner.most_weighed and (by_weight := [way.choice for way in ways if way.choice != "window"]):
        raise EngineError(
            f"--choice {by_weight[0]} goes by the attention that blocks of the cache get, which this engine's "
            "attention does not tell; --choice window needs nothing, engine.attention_kernel: native tells"
        )
    return runner, OneAtATime([_speculator(section, way, adaptive) for way in ways], adaptive=False)


def _speculator(section: WindowedSelfDrafting, way: Way, adaptive: bool) -> WindowedSpeculator:
    """One that drafts in this way behind any context, as long as the section says."""
    made = WindowedSpeculator(
        section.draft_length,
        way.window,
        section.sink_tokens,
        way.choice,
        min_context=1,
        lookup=way.lookup,
        adaptive=adaptive,
    )
    made.name = way.name
    return made
