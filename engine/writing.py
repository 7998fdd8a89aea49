"""Runs writing tasks (`speculators.data.writing`) on an engine, as many at once as it takes.

Example::

    engine = Engine(runner, StaticPolicy([create("none")]), EngineConfig(max_batch_size=128))
    writer = EngineWriter(engine, end_ids=[2])
    for sample in writer.run(tasks): ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from engine.engine import Engine
from engine.outputs import RequestOutput
from engine.request import GenerationRequest, SamplingParams
from speculators.data.samples import Sample
from speculators.data.writing import Task, Writing, Written


class EngineWriter:
    """A Writer over an engine, which it has for itself. Stopping the iteration leaves the engine as it is."""

    def __init__(self, engine: Engine, end_ids: Iterable[int]) -> None:
        self._engine = engine
        self._end_ids = frozenset(end_ids)
        self._finished: deque[Sample] = deque()
        self._running = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[Sample]:
        """The samples, in the order in which they are finished.

        Raises:
            Exception: what the engine said of a request that it could not serve.
        """
        waiting = iter(tasks)
        while True:
            taken = 0
            for task in islice(waiting, self._engine.config.max_batch_size - self._running):
                taken += 1
                self._running += 1
                self._advance(task, None)
            while self._finished:
                yield self._finished.popleft()
            if self._running:
                self._engine.step()
            elif not taken:  # tasks that ask for nothing end at once; only then are there no more
                return

    def _advance(self, task: Task, written: Written | None) -> None:
        try:
            # A generator takes its first step from None.
            self._submit(task, task.send(written))  # type: ignore[arg-type]
        except StopIteration as stop:
            self._running -= 1
            self._finished.append(stop.value)

    def _submit(self, task: Task, writing: Writing) -> None:
        tokens: list[int] = []

        def callback(output: RequestOutput) -> None:
            tokens.extend(output.tokens)
            if output.error is not None:
                raise output.error
            if output.finish_reason:
                self._advance(task, Written(tuple(tokens), ended=output.finish_reason == "stop"))

        sampling = SamplingParams(writing.temperature, writing.top_k, seed=writing.seed)
        request = GenerationRequest(writing.prompt, writing.max_tokens, sampling, end_ids=self._end_ids)
        self._engine.submit(request, callback)
