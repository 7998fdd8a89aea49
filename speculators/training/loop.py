"""The training loop: Hugging Face Accelerate on a CPU, one GPU or several, resumed exactly after a kill.

Everything a step depends on is its number, the seed, the weights and the optimiser's state. The last two are saved
every `save_every` steps, beside their place and then renamed; a run that is killed repeats the steps since then bit
for bit.

Example::

    run = TrainingRun(trainee, data, settings, Path("runs/training/smollm2"))
    run.train(report=print)
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from speculators.data.samples import Sample
from speculators.training.acceptance import Acceptance, mean_chain
from speculators.training.arithmetic import in_mixed_precision
from speculators.training.errors import TrainingError
from speculators.training.features import Batch, FeatureSource, collate
from speculators.training.identity import latest_state
from speculators.training.optimizers import OPTIMIZERS
from speculators.training.records import Evaluation, Records, Started, TrainingStep
from speculators.training.schedule import Schedule, learning_rate, lengths_of
from speculators.training.trainee import Trainee

_STATE = "state-"


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """How a run goes.

    Attributes:
        epochs: passes over the data.
        batch_tokens: padded tokens of a micro-batch.
        accumulation: micro-batches of a step, on each process.
        optimizer: "adamw" or "muon" (`speculators.training.optimizers`).
        learning_rate, warmup, floor: greatest rate; share of the steps in which it rises; share of it at the end.
        weight_decay, betas, clip: of the optimiser (the betas of AdamW), and the largest norm of the gradient.
        seed: of the order of the data and of the starting weights.
        everything: learn all tokens of the data, not only those that the target wrote.
        save_every, evaluate_every: steps between saves, and between evaluations.
        evaluate_first: evaluate what the run begins with.
        mixed_precision: matrix products in bfloat16 where the device has it.
        tensorboard: write the records for TensorBoard, too.
    """

    epochs: int = 1
    batch_tokens: int = 4096
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.05
    floor: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 0.5
    seed: int = 0
    everything: bool = False
    save_every: int = 100
    evaluate_every: int = 100
    evaluate_first: bool = False
    mixed_precision: bool = True
    tensorboard: bool = False


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Samples to learn from, samples to measure on, and where their hidden states come from."""

    samples: Sequence[Sample]
    held_out: Sequence[Sample]
    source: FeatureSource


class TrainingRun:
    """One run in a directory of its own.

    Raises:
        TrainingError: there are too few samples for a step.
    """

    def __init__(
        self, trainee: Trainee, data: TrainingData, settings: LoopSettings, directory: Path, *, cpu: bool
    ) -> None:
        # Precision is not asked of Accelerator: it keeps the first answer for the whole process.
        self._accelerator = Accelerator(gradient_accumulation_steps=settings.accumulation, cpu=cpu)
        self._data, self._settings, self._directory = data, settings, directory
        group = settings.accumulation * self._accelerator.num_processes
        lengths = lengths_of(data.samples)
        self._schedule = Schedule(lengths, settings.batch_tokens, group, settings.seed)
        self._steps_of = [len(self._schedule.epoch(number)) for number in range(settings.epochs)]
        self.steps = sum(self._steps_of)
        if not all(self._steps_of):
            raise TrainingError(
                f"{len(data.samples)} samples of {sum(lengths)} tokens make no step of {group} micro-batches of "
                f"{settings.batch_tokens} tokens; use more data or smaller batches"
            )
        # What is saved in the end: of a module that is spread over devices no process has all weights.
        self._plain = copy.deepcopy(trainee)
        optimizers = OPTIMIZERS[settings.optimizer](
            trainee, settings.learning_rate, settings.betas, settings.weight_decay
        )
        self._module, *self._optimizers = self._accelerator.prepare(trainee, *optimizers)
        self._records = Records(directory, tensorboard=settings.tensorboard)

    def train(self, report: Callable[[Started | TrainingStep | Evaluation], None]) -> Evaluation:
        """Train from where the directory says to the end; returns the last evaluation.

        Raises:
            TrainingError: the state cannot be read or written, or the loss is not finite.
        """
        step = self._resume()
        self._records.forget_after(step or -1)  # an evaluation before the first step is made again
        if self._accelerator.is_main_process:
            report(Started(self._directory.name, step, self.steps))
        if self._settings.evaluate_first and step == 0:
            self._tell(self._evaluate(step), report)
        while step < self.steps:
            record = self._step(step)
            step += 1
            self._tell(record, report)
            if step % self._settings.evaluate_every == 0 and step < self.steps:
                self._tell(self._evaluate(step), report)
            if step % self._settings.save_every == 0 and step < self.steps:
                self._save(step)
        self._save(step)
        final = self._evaluate(step)
        self._tell(final, report)
        if self._accelerator.is_main_process:
            self._records.draw()
        return final

    @property
    def seconds(self) -> float:
        """Wall time of all steps so far."""
        return self._records.seconds()

    def trained(self) -> Trainee:
        """The trainee with its present weights, on the CPU."""
        self._plain.load_state_dict(self._accelerator.get_state_dict(self._module))
        return self._plain

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes the results."""
        return bool(self._accelerator.is_main_process)

    def _step(self, step: int) -> TrainingStep:
        started, settings, accelerator = time.perf_counter(), self._settings, self._accelerator
        rate = settings.learning_rate * learning_rate(step, self.steps, settings.warmup, settings.floor)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate", 1.0)
        self._module.train()
        losses: list[torch.Tensor] = []
        rights: torch.Tensor | None = None
        counts, chain, tokens = 0.0, 0.0, 0
        for chosen in self._micro_batches(step):
            samples = [self._data.samples[index] for index in chosen]
            tokens += sum(len(sample.tokens) for sample in samples)
            batch = collate(samples, self._data.source, everything=settings.everything)
            batch = batch.to(accelerator.device)
            with accelerator.accumulate(self._module):
                loss, hits = self._forward(batch)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self._module.parameters(), settings.clip)
                for optimizer in self._optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            losses.append(loss.detach())
            right, rows = hits.sum((1, 2)), float(batch.learned[:, 1:].sum())
            rights = right if rights is None else rights + right
            counts += rows
            chain += rows * mean_chain(hits, batch.learned)
        mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
        if not mean < float("inf"):
            raise TrainingError(f"step {step}: the loss is {mean}; use a lower training.learning_rate")
        return TrainingStep(
            step=step + 1,
            steps=self.steps,
            loss=mean,
            learning_rate=rate,
            accuracy=[] if rights is None else (rights / max(counts, 1.0)).tolist(),
            acceptance=1 + chain / max(counts, 1.0),
            tokens=tokens * accelerator.num_processes,
            seconds=time.perf_counter() - started,
        )

    def _forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss, and which tokens each depth got right ``[depth, batch, length]``."""
        with in_mixed_precision(self._accelerator.device, wanted=self._settings.mixed_precision):
            loss, hits = self._module(batch)
        return loss, hits

    def _micro_batches(self, step: int) -> list[list[int]]:
        """This process's share of a step."""
        epoch = 0
        while step >= self._steps_of[epoch]:
            step -= self._steps_of[epoch]
            epoch += 1
        group = self._schedule.epoch(epoch)[step]
        return group[self._accelerator.process_index :: self._accelerator.num_processes]

    @torch.no_grad()
    def _evaluate(self, step: int) -> Evaluation:
        """Acceptance on the held-out samples, of which every process takes its share."""
        accelerator = self._accelerator
        self._module.eval()
        total = Acceptance(self._plain.depth)
        samples = sorted(self._data.held_out, key=lambda sample: len(sample.tokens))
        for start in range(0, len(samples), 16):
            part = samples[start : start + 16]
            batch = collate(part, self._data.source, everything=False).to(accelerator.device)
            _, hits = self._forward(batch)
            for row, sample in enumerate(part):
                for begin, end in sample.written:
                    total.add(hits[:, row], begin, end)
        return Evaluation(
            step=step, **{key: getattr(total, key) for key in ("tokens", "length", "by_position")}
        )

    def _tell(
        self,
        record: TrainingStep | Evaluation,
        report: Callable[[Started | TrainingStep | Evaluation], None],
    ) -> None:
        if self._accelerator.is_main_process:
            self._records.append(record)
            report(record)

    def _resume(self) -> int:
        found = latest_state(self._directory)
        if found is None:
            return 0
        state, step = found
        try:
            self._accelerator.load_state(str(state))
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
            raise TrainingError(
                f"{state}: the saved state does not fit this run or is damaged ({error}); remove it to begin anew"
            ) from error
        return step

    def _save(self, step: int) -> None:
        """Save the state beside its place, rename it, and remove older ones."""
        accelerator = self._accelerator
        place = self._directory / f"{_STATE}{step:08d}"
        if place.is_dir():  # the run had ended
            return
        partial = self._directory / f".{place.name}.partial"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(partial))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                partial.rename(place)
                for older in self._directory.glob(f"{_STATE}????????"):
                    if older != place:
                        shutil.rmtree(older)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(f"{place} cannot be written: {error}") from error
