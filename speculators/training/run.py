"""`drafthouse train`: data, hidden states, training, checkpoint; whatever is there already is taken up.

runs/training/
    samples.jsonl        conversations whose answers the target wrote
    target.json          which target that was
    features/            its hidden states
    eagle3/              one run a method: records.jsonl, curves.png, state-00000400/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import set_seed

from deployments.training import TrainingSpec
from speculators.data.errors import DataError
from speculators.data.prompts import Prompt, read_prompts
from speculators.data.samples import Sample, SampleFile, read_samples
from speculators.data.self_written import Author
from speculators.data.writing import Task, Writer
from speculators.formats.files import replace_directory, replace_file
from speculators.training.errors import TrainingError
from speculators.training.families import FAMILIES, Ingredients, layers_read
from speculators.training.features import CachedFeatures, FeatureSource, OnlineFeatures
from speculators.training.loop import LoopSettings, TrainingData, TrainingRun
from speculators.training.provenance import PROVENANCE_FILE, describe_data, target_hash, write_provenance
from speculators.training.records import Evaluation, TrainingStep
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee
from speculators.training.vocabulary import coverage, draft_vocabulary

_SAMPLES, _TARGET, _FEATURES = "samples.jsonl", "target.json", "features"
_HELD_OUT_EVERY = 32
_MOST_HELD_OUT = 256
_FEWEST_SAMPLES = 8

Report = Callable[[str, float | None], None]
StepReport = Callable[[TrainingStep | Evaluation], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained.

    Attributes:
        method: as the spec names it.
        target: the target's directory.
        checkpoint: where the trained speculator goes.
        training: the spec's section.
    """

    method: str
    target: Path
    checkpoint: Path
    training: TrainingSpec


def gather(job: Job, author: Author, writer: Writer, report: Report) -> int:
    """Have the target write until there are enough tokens, or all prompts are answered; returns how many there are.

    Raises:
        DataError: the prompts or the samples cannot be read, or the samples are another target's.
    """
    directory, wanted = job.training.directory, job.training.data
    _claim(directory, job.target)
    file = SampleFile(directory / _SAMPLES)
    prompts = read_prompts(wanted.path) if wanted.path else None
    numbers: Iterable[int] = count() if prompts is None else range(len(prompts))
    missing = (number for number in numbers if number not in file.done)
    if file.num_written >= wanted.response_tokens:
        return file.num_written
    for _ in file.append(writer.run(_task(author, prompts, number) for number in missing)):
        share = file.num_written / wanted.response_tokens
        report(f"{file.num_written:,} of {wanted.response_tokens:,} response tokens", min(1.0, share))
        if file.num_written >= wanted.response_tokens:
            break
    return file.num_written


def train(job: Job, report: Report, tell: StepReport) -> Evaluation:
    """Train on the samples that are there, and write the checkpoint.

    Raises:
        DataError: the samples cannot be read, are too few, or are another target's.
        TrainingError: see its message.
    """
    started, training = time.time(), job.training
    if job.method not in FAMILIES:
        raise TrainingError(
            f"speculation.method {job.method} has nothing to train; these have: {', '.join(FAMILIES)}"
        )
    state = PartialState(cpu=training.device == "cpu")
    _check_claim(training.directory, job.target)
    usable = usable_samples(training)
    samples, held_out = _split(training, usable)
    report("loading the target", None)
    target = FrozenTarget(job.target, state.device)
    _check_tokens(training.directory / _SAMPLES, usable, target.vocab_size)
    source = _features(job, target, usable, report)
    kept = draft_vocabulary(samples, min(training.draft_vocab_size, target.vocab_size), target.vocab_size)
    set_seed(training.seed)
    trainee = FAMILIES[job.method](Ingredients(target, kept, samples, source, training))
    data = TrainingData(samples, held_out, source)
    for name, settings in _stages(job.method, training):
        run = TrainingRun(trainee, data, settings, training.directory / name, cpu=training.device == "cpu")
        final = run.train(tell)
        trainee = run.trained()
    if state.is_main_process:
        content = {
            "method": job.method,
            "target": {"name": job.target.name, "sha256": target_hash(job.target)},
            "training": training.model_dump(mode="json"),
            "data": {
                **describe_data(samples, held_out),
                "coverage": coverage(held_out, kept, target.vocab_size),
            },
            "processes": state.num_processes,
            "device": str(state.device),
            "seconds_of_last_start": round(time.time() - started),
            "held_out": asdict(final),
        }
        _write(job.checkpoint, trainee, content)
    state.wait_for_everyone()
    return final


def is_gathered(job: Job) -> bool:
    """Whether `gather` has nothing to do, so that the target need not be loaded for it.

    Raises:
        DataError: the samples cannot be read, or are another target's.
    """
    directory = job.training.directory
    if not (directory / _SAMPLES).is_file():
        return False
    _check_claim(directory, job.target)
    return SampleFile(directory / _SAMPLES).num_written >= job.training.data.response_tokens


def _task(author: Author, prompts: Sequence[Prompt] | None, number: int) -> Task:
    if prompts is None:
        return author.self_written(number)
    prompt = prompts[number]
    if prompt.is_text:
        return author.continued(number, prompt.turns[0])
    return author.answered(number, prompt.category, list(prompt.turns))


def _claim(directory: Path, target: Path) -> None:
    """Note whose samples the directory holds."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / _TARGET).is_file():
            with replace_file(directory / _TARGET) as path:
                path.write_text(
                    json.dumps({"name": target.name, "sha256": target_hash(target)}), encoding="utf-8"
                )
    except OSError as error:
        raise DataError(f"{directory} cannot be written: {error.strerror}") from error
    _check_claim(directory, target)


def _check_claim(directory: Path, target: Path) -> None:
    try:
        owner = json.loads((directory / _TARGET).read_text(encoding="utf-8"))
        name, digest = owner["name"], owner["sha256"]
    except (OSError, ValueError, KeyError):
        raise DataError(
            f"{directory / _TARGET} is missing or damaged; it says which target wrote the samples"
        ) from None
    if digest != target_hash(target):
        raise DataError(
            f"the samples in {directory} were written by {name}, which is not the model in {target}; name another "
            "training.directory"
        )


def usable_samples(training: TrainingSpec) -> list[Sample]:
    """All samples that are not refused and not too long, in the order of the file.

    Raises:
        DataError: the file is missing or damaged.
    """
    path, longest = training.directory / _SAMPLES, training.data.max_sample_tokens
    return [item for item in read_samples(path) if not item.refused and len(item.tokens) <= longest]


def split_samples(usable: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from, and those of every 32nd that are greedy, to measure on."""
    samples = [item for item in usable if item.id % _HELD_OUT_EVERY]
    return samples, [item for item in usable if item.id % _HELD_OUT_EVERY == 0 and item.greedy]


def _split(training: TrainingSpec, usable: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Samples to learn from, and samples to measure on: at least so many, at most so many."""
    samples, reserved = split_samples(usable)
    held_out = reserved[:_MOST_HELD_OUT]
    if len(samples) < _FEWEST_SAMPLES or not held_out:
        raise DataError(
            f"{training.directory / _SAMPLES} has {len(samples)} samples to learn from and {len(held_out)} greedy "
            "ones to measure on; raise training.data.response_tokens, or give more prompts"
        )
    return samples, held_out


def _check_tokens(path: Path, samples: Sequence[Sample], vocab_size: int) -> None:
    for sample in samples:
        if not 0 <= min(sample.tokens) <= max(sample.tokens) < vocab_size:
            raise DataError(f"{path}: sample {sample.id} has tokens beyond the target's {vocab_size}")


def _features(job: Job, target: FrozenTarget, samples: Sequence[Sample], report: Report) -> FeatureSource:
    training = job.training
    layers = layers_read(training, target.num_layers)
    if training.features == "online":
        return OnlineFeatures(target, layers)
    name = json.loads((training.directory / _TARGET).read_text(encoding="utf-8"))["sha256"]
    cache = CachedFeatures(training.directory / _FEATURES, layers, target.hidden_size, name)
    state = PartialState()
    if state.is_main_process:
        cache.extend(samples, target, lambda done, all_: report(f"hidden states {done}/{all_}", done / all_))
    state.wait_for_everyone()
    cache.open(samples)
    return cache


def _stages(method: str, training: TrainingSpec) -> list[tuple[str, LoopSettings]]:
    """Name and settings of each run."""
    shared: dict[str, Any] = {
        key: getattr(training, key)
        for key in (
            *("batch_tokens", "accumulation", "optimizer", "learning_rate", "seed"),
            *("save_every", "evaluate_every", "mixed_precision", "tensorboard"),
        )
    }
    name = method if training.inputs == "both" else f"{method}-{training.inputs}"
    first, second = training.epochs_of("inputs"), training.epochs_of("outputs")
    inputs = (f"{name}-inputs", LoopSettings(**shared, epochs=first, everything=True))
    outputs = (f"{name}-outputs", LoopSettings(**shared, epochs=second))
    recipe = "both" if method == "mlp_speculator" else "outputs"
    return {"both": [inputs, outputs], "inputs": [inputs], "outputs": [outputs]}[training.stages or recipe]


def _write(checkpoint: Path, trainee: Trainee, content: dict[str, Any]) -> None:
    try:
        with replace_directory(checkpoint, PROVENANCE_FILE) as partial:
            trainee.save(partial)
            write_provenance(partial, content)
    except OSError as error:
        raise TrainingError(f"{checkpoint} cannot be written: {error}") from error
