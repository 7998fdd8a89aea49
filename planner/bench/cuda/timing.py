"""Times of work on a device."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from engine.runner import SequenceInput
from engine.torch_replays import Replay, StepInputs, new_pool
from planner.bench.cuda.decoder import Decoder

Key = TypeVar("Key")

_SHORTEST = 20e-3  # seconds that a copy is repeated for


class Stopwatch:
    """Milliseconds that the device takes for what is asked of it; of the host where there is no device beside it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, work: Callable[[], object]) -> float:
        """Of one call."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            work()
            return (time.perf_counter() - started) * 1e3
        event: Any = torch.cuda.Event
        begin, end = event(enable_timing=True), event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))


class Copy:
    """GB/s at which a buffer is copied on the device, what is read and what is written together."""

    def __init__(self, size: int, stopwatch: Stopwatch, device: torch.device) -> None:
        self._source = torch.empty(size // 4, dtype=torch.int32, device=device).random_()
        self._target = torch.empty_like(self._source)
        self._stopwatch = stopwatch
        self._repeats = 1
        self._repeats = max(1, int(_SHORTEST / max(1e-6, min(self._ms() for _ in range(3)) / 1e3)))

    def __call__(self) -> float:
        return 2 * self._source.nbytes * self._repeats / self._ms() / 1e6

    def _ms(self) -> float:
        return self._stopwatch(lambda: [self._target.copy_(self._source) for _ in range(self._repeats)])


class MeasuredStep:
    """One step of a decoder, again and again.

    Args:
        decoder: what runs it.
        batch: its inputs.
        pool: from `engine.torch_replays.new_pool`.
    """

    def __init__(self, decoder: Decoder, batch: Sequence[SequenceInput], pool: object) -> None:
        self._step = decoder.step(batch)
        self._replay = Replay(StepInputs(self._step, decoder.device, decoder.dtype), decoder.tokens, pool)
        self._stopwatch = Stopwatch(decoder.device)

    def device_ms(self) -> float:
        """Of the step alone."""
        return self._stopwatch(self._replay.repeat)

    def wall_ms(self) -> float:
        """Until the host, which brings the inputs, has the tokens."""
        started = time.perf_counter()
        self._replay.run(self._step)["tokens"].cpu()
        return (time.perf_counter() - started) * 1e3


def steps(decoder: Decoder, batches: Mapping[Key, Sequence[SequenceInput]]) -> dict[Key, MeasuredStep]:
    """Steps that alternate; what they put out lies in one pool."""
    pool = new_pool(decoder.device)
    return {key: MeasuredStep(decoder, batch, pool) for key, batch in batches.items()}
