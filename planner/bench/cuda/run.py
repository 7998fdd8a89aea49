"""The run: checks first, then the regime of MagicDec, then each model's steps, as far as time and memory go.

Steps of one batch and context alternate, round after round, with the copy whose bandwidth bounds them. What is known
is written whenever something new is, so a run that is cut off leaves what it has measured.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from deployments.files.writing import write_json
from engine.runner import BLOCK_SIZE, SequenceInput
from engine.torch_attention import has_kernel
from planner.bench.cuda.check import Check, checks
from planner.bench.cuda.decoder import Decoder
from planner.bench.cuda.shapes import ModelShape, Regime, Workload
from planner.bench.cuda.timing import Copy, Stopwatch, steps

RESULTS = "results.json"
ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_LEAST_ROUNDS = 3
_SPARE_MEMORY = 6 << 30  # for logits, graphs and what attention keeps between its kernels
_HURRY = 1.5  # of the time that the group before has taken


@dataclass(frozen=True, slots=True)
class StepCost:
    """Raw times of a step.

    Attributes:
        context: rows of the cache that each request reads before its new ones.
        window: whether these are a part of a longer context.
        device_ms: of the device; `wall_ms`: until the tokens are on the host.
        copy_gb_s: of the copies between them.
        read_bytes: weights and cache, each once.
        blocks_shared: whether requests had cache blocks in common, since blocks of their own did not fit.
    """

    model: str
    batch: int
    rows: int
    context: int
    window: bool
    device_ms: Sequence[float]
    wall_ms: Sequence[float]
    copy_gb_s: Sequence[float]
    read_bytes: int
    blocks_shared: bool = False

    @property
    def ms(self) -> float:
        """Of the device, median."""
        return statistics.median(self.device_ms)

    @property
    def bound_ms(self) -> float:
        """Least time of a step: all that it reads, at the speed at which memory is copied."""
        return self.read_bytes / (statistics.median(self.copy_gb_s) * 1e9) * 1e3

    def facts(self) -> dict[str, Any]:
        """For the results."""
        return {**asdict(self), "ms": self.ms, "bound_ms": self.bound_ms, "of_bound": self.bound_ms / self.ms}


@dataclass(frozen=True, slots=True)
class Speedup:
    """What drafting `draft` tokens on a window gains, from measured times until the tokens are on the host.

    Predicted, for tokens that are accepted independently with one probability: a step then gives
    (1 - a^(n + 1)) / (1 - a) of them (arXiv 2211.17192, equation 1).
    """

    draft: int
    plain_ms: float
    draft_ms: float
    verify_ms: float

    def of(self, acceptance: float) -> float:
        """Times plain decoding."""
        tokens = sum(acceptance**place for place in range(self.draft + 1))
        return tokens * self.plain_ms / (self.draft * self.draft_ms + self.verify_ms)

    def facts(self) -> dict[str, Any]:
        """For the results."""
        return {
            **asdict(self),
            "speedup": {str(acceptance): self.of(acceptance) for acceptance in ACCEPTANCES},
        }


@dataclass(slots=True)
class Results:
    """What is known so far."""

    environment: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    steps: list[StepCost] = field(default_factory=list)
    speedups: list[Speedup] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON has them."""
        return {
            "environment": self.environment,
            "checks": [{**asdict(check), "passed": check.passed} for check in self.checks],
            "steps": [step.facts() for step in self.steps],
            "regime": [speedup.facts() for speedup in self.speedups],
            "left_out": self.left_out,
            "seconds": round(self.seconds, 1),
        }


class Bench:
    """Runs a workload.

    Args:
        workload: what is measured.
        directory: for the results.
        device: what it is measured on.
        started: when the time began to run, by `time.monotonic`.
        report: gets a line now and then.
    """

    def __init__(
        self,
        workload: Workload,
        directory: Path,
        device: torch.device,
        *,
        started: float,
        report: Callable[[str], None],
    ) -> None:
        self._workload, self._path, self._device = workload, directory / RESULTS, device
        self._started, self._report = started, report
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._longest = 0.0  # seconds of a group
        self.results = Results(_environment(device, self._dtype))
        self._copy = Copy(workload.copied, Stopwatch(device), device)

    def run(self) -> Results:
        """Measure. If a check fails nothing is."""
        for check in checks(self._device, self._dtype):
            self.results.checks.append(check)
        self._write()
        if all(check.passed for check in self.results.checks):
            regime = self._workload.regime
            for model in self._workload.models:
                self._measure(model, regime if model == regime.model else None)
        self._write()
        return self.results

    def _measure(self, model: ModelShape, regime: Regime | None) -> None:
        blocks = self._blocks(model)
        if not blocks:
            self._leave_out("memory", model=model.name)
            return
        decoder = Decoder(model, blocks, self._device, self._dtype)
        if regime is not None:
            self._regime(decoder, regime)
        for context in self._workload.contexts:
            for batch in self._workload.batches:
                each = _blocks_of(context, max(self._workload.rows))
                if each * batch > blocks:
                    self._leave_out("memory", model=model.name, context=context, batch=batch)
                    continue
                tables = [range(place * each, (place + 1) * each) for place in range(batch)]
                wanted = {
                    (rows, False): [SequenceInput([1] * rows, context, table) for table in tables]
                    for rows in self._workload.rows
                }
                self._group(decoder, context, wanted)

    def _regime(self, decoder: Decoder, regime: Regime) -> None:
        """Plain steps, drafts and verifications; requests share blocks where blocks of their own do not fit."""
        most = max(self._workload.rows)
        each = _blocks_of(regime.context, most)
        apart = min(each, (decoder.blocks - each) // max(1, regime.batch - 1))
        if apart < 1:
            self._leave_out("memory", regime=asdict(regime))
            return
        tables = [range(place * apart, place * apart + each) for place in range(regime.batch)]
        wanted = {
            (rows, False): [SequenceInput([1] * rows, regime.context, table) for table in tables]
            for rows in self._workload.rows
        }
        newest = regime.context // BLOCK_SIZE - regime.window // BLOCK_SIZE + regime.sinks // BLOCK_SIZE
        drafts = [[*table[: regime.sinks // BLOCK_SIZE], *table[newest:]] for table in tables]
        wanted[1, True] = [
            SequenceInput([1], regime.window, blocks, position=regime.context) for blocks in drafts
        ]
        costs = self._group(decoder, regime.context, wanted, shared=apart < each)
        walls = {key: statistics.median(cost.wall_ms) for key, cost in costs.items()}
        for rows in self._workload.rows:
            if rows > 1 and walls:
                speedup = Speedup(rows - 1, walls[1, False], walls[1, True], walls[rows, False])
                self.results.speedups.append(speedup)
        self._write()

    def _group(
        self,
        decoder: Decoder,
        context: int,
        wanted: dict[tuple[int, bool], list[SequenceInput]],
        *,
        shared: bool = False,
    ) -> dict[tuple[int, bool], StepCost]:
        """Steps that are compared, by rows and whether they read a window; none if there is no time for all."""
        shape, batch = decoder.shape, len(next(iter(wanted.values())))
        name = {"model": shape.name, "context": context, "batch": batch}
        left = self._left()
        if left < _HURRY * self._longest:
            self._leave_out("time", **name)
            return {}
        self._report(f"{shape.name}, {context} tokens of context, batch {batch}; {left:.0f} s are left")
        began = time.monotonic()
        measured = steps(decoder, wanted)
        times: dict[Any, tuple[list[float], list[float]]] = {key: ([], []) for key in measured}
        copies: list[float] = []
        for number in range(self._workload.rounds + 1):
            copies.append(self._copy())
            for key, step in measured.items():
                for kept, figure in zip(times[key], (step.device_ms(), step.wall_ms()), strict=True):
                    kept.append(figure)
            spent = (time.monotonic() - began) / (number + 1)
            if number >= _LEAST_ROUNDS and self._left() < _HURRY * spent:
                break
        found = {}
        for (rows, window), inputs in wanted.items():
            past = inputs[0].past
            read = shape.weights + batch * (past + rows) * shape.cached
            device, wall = (kept[1:] for kept in times[rows, window])  # the first round warms up
            found[rows, window] = StepCost(
                shape.name,
                batch,
                rows,
                past,
                window,
                device,
                wall,
                copies[1:],
                read_bytes=read * self._dtype.itemsize,
                blocks_shared=shared,
            )
        self.results.steps.extend(found.values())
        self._longest = max(self._longest, time.monotonic() - began)
        self._write()
        return found

    def _blocks(self, model: ModelShape) -> int:
        """Of a cache for this model: for the largest group, or as many as there is memory for."""
        size = self._dtype.itemsize
        most = max(self._workload.rows)
        largest = max(
            batch * _blocks_of(context, most)
            for batch in self._workload.batches
            for context in self._workload.contexts
        )
        if model == self._workload.regime.model:
            regime = self._workload.regime
            largest = max(largest, regime.batch * _blocks_of(regime.context, most))
        if self._device.type != "cuda":
            return largest
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._device)[0] - _SPARE_MEMORY
        free -= (model.weights + model.vocabulary * model.hidden) * size
        return max(0, min(largest, free // (model.cached * BLOCK_SIZE * size)))

    def _left(self) -> float:
        return self._workload.seconds - (time.monotonic() - self._started)

    def _leave_out(self, why: str, **what: Any) -> None:
        self.results.left_out.append({**what, "for_want_of": why})

    def _write(self) -> None:
        self.results.seconds = time.monotonic() - self._started
        write_json(self._path, self.results.facts())


def _blocks_of(context: int, rows: int) -> int:
    return -(-(context + rows) // BLOCK_SIZE)


def _environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": platform.processor() or platform.machine(),
        "attention": "triton" if has_kernel(device) else "torch",
        "dtype": str(dtype).removeprefix("torch."),
    }
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "cuda": torch.version.cuda,
        }
    return facts
