"""`drafthouse train`: data, hidden states, training, checkpoint; whatever is there already is taken up.

runs/training/smollm2-135m/
    samples.jsonl        conversations whose answers the target wrote
    target.json          which target that was, and how it was asked
    features/            its hidden states
    mine-outputs/        a stage of the deployment `mine`: run.json, records.jsonl, curves.png, state-00000400/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed

from deployments.files.directories import replace_directory
from deployments.files.hashes import file_sha256
from deployments.files.reading import read_json_object
from deployments.files.writing import write_json
from deployments.training import TrainingSpec
from speculators.data.errors import DataError
from speculators.data.prompts import Prompt, read_prompts
from speculators.data.samples import Sample, SampleFile, content_hash, read_samples
from speculators.data.self_written import Author
from speculators.data.writing import Task, Writer
from speculators.training.errors import TrainingError
from speculators.training.families import FAMILIES, Ingredients, layers_read, own_settings
from speculators.training.features import CachedFeatures, FeatureSource, OnlineFeatures
from speculators.training.identity import (
    begin_run,
    begun_run,
    check_checkpoint,
    check_run,
    latest_state,
    run_id,
    settings_used,
    unlisted_files,
)
from speculators.training.loop import LoopSettings, TrainingData, TrainingRun
from speculators.training.provenance import PROVENANCE_FILE, describe_data, target_hash, write_provenance
from speculators.training.records import Evaluation, Started, TrainingStep
from speculators.training.starts import Sizes, Start, check_start, open_start
from speculators.training.target import FrozenTarget
from speculators.training.trainee import Trainee
from speculators.training.vocabulary import coverage, draft_vocabulary

_SAMPLES, _TARGET, _FEATURES = "samples.jsonl", "target.json", "features"
_HELD_OUT_EVERY = 32
_MOST_HELD_OUT = 256
_FEWEST_SAMPLES = 8

Report = Callable[[str, float | None], None]
StepReport = Callable[[Started | TrainingStep | Evaluation], None]


@dataclass(frozen=True, slots=True)
class Job:
    """What is trained.

    Attributes:
        name: of the deployment, which its runs carry.
        method: as the spec names it.
        target: the target's directory.
        checkpoint: where the trained speculator goes.
        training: the spec's section.
    """

    name: str
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
    _claim(job)
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


def check_places(job: Job, *, fresh: bool = False, replace: bool = False) -> None:
    """Find out before anything is computed whether the result could be written.

    Raises:
        TrainingError, ForeignDirectoryError: as `speculators.training.identity.check_checkpoint` and
            `speculators.training.starts.check_start`.
    """
    if job.method not in FAMILIES:
        raise TrainingError(
            f"speculation.method {job.method} has nothing to train; these have: {', '.join(FAMILIES)}"
        )
    check_start(job.training, job.checkpoint)
    runs = [] if fresh else [begun_run(job.training.directory / name) for name, _ in _stages(job)]
    check_checkpoint(job.checkpoint, runs, replace=replace)


def kept(job: Job) -> str:
    """What of the job is on disk, for whoever has stopped it."""
    states = {
        name: found for name, _ in _stages(job) if (found := latest_state(job.training.directory / name))
    }
    samples = job.training.directory / _SAMPLES
    parts = [f"the state of {name} after step {step}" for name, (_, step) in states.items()]
    if samples.is_file():
        parts.insert(0, f"{SampleFile(samples).num_written:,} response tokens in {samples}")
    return f"kept are {' and '.join(parts)}" if parts else "nothing was kept"


def train(
    job: Job, report: Report, tell: StepReport, *, fresh: bool = False, replace: bool = False
) -> Evaluation:
    """Train on the samples that are there, and write the checkpoint.

    Args:
        job: what is trained.
        report: gets what is done and the share that is done.
        tell: gets where each stage begins, its steps, and its evaluations.
        fresh: set a run of other settings aside and begin anew.
        replace: the checkpoint of another run may be replaced.

    Raises:
        DataError: the samples cannot be read, are too few, or are another target's.
        CheckpointError: the checkpoint that training begins from is damaged.
        TrainingError: see its message.
    """
    check_places(job, fresh=fresh, replace=replace)
    state = PartialState(cpu=job.training.device == "cpu")
    _check_claim(job)
    usable = usable_samples(job.training)
    samples, held_out = _split(job.training, usable)
    report("loading the target", None)
    target = FrozenTarget(job.target, state.device)
    _check_tokens(job.training.directory / _SAMPLES, usable, target.vocab_size)
    job, start = settled(job, target)
    training = job.training
    source = _features(job, target, usable, report)
    if start is None:
        kept = draft_vocabulary(samples, min(training.draft_vocab_size, target.vocab_size), target.vocab_size)
    else:
        kept = torch.from_numpy(start.kept)
    identity = _identity(job, target, samples, len(kept), state.num_processes)
    if start is not None:
        identity["start"] = start.identity()
    _begin(job, identity, state, fresh=fresh)
    set_seed(training.seed)
    trainee = FAMILIES[job.method](Ingredients(target, kept, samples, source, training, start))
    data = TrainingData(samples, held_out, source)
    done = {}
    for name, settings in _stages(job):
        run = TrainingRun(trainee, data, settings, training.directory / name, cpu=training.device == "cpu")
        final = run.train(tell)
        trainee = run.trained()
        done[name] = {"steps": run.steps, "seconds": round(run.seconds)}
    if state.is_main_process:
        content = {
            "run": run_id(identity),
            **identity,
            "stages_done": done,
            "data": {
                **describe_data(samples, held_out),
                "written": read_json_object(training.directory / _TARGET, DataError).get("data"),
                "coverage": coverage(held_out, kept, target.vocab_size),
            },
            "device": str(state.device),
            "held_out": asdict(final),
        }
        check_checkpoint(job.checkpoint, [run_id(identity)], replace=replace)
        _write(job.checkpoint, trainee, content)
    state.wait_for_everyone()
    return final


def settled(job: Job, target: Sizes) -> tuple[Job, Start | None]:
    """The job with what the checkpoint fixes that it begins from, and that checkpoint, if there is one.

    Raises:
        CheckpointError, TrainingError: as `speculators.training.starts.open_start`.
    """
    if job.training.from_pretrained is None:
        return job, None
    start, training = open_start(job.method, job.training, target)
    return dataclasses.replace(job, training=training), start


def is_gathered(job: Job) -> bool:
    """Whether `gather` has nothing to do, so that the target need not be loaded for it.

    Raises:
        DataError: the samples cannot be read, or are another target's.
    """
    directory = job.training.directory
    if not (directory / _SAMPLES).is_file():
        return False
    _check_claim(job)
    return SampleFile(directory / _SAMPLES).num_written >= job.training.data.response_tokens


def _task(author: Author, prompts: Sequence[Prompt] | None, number: int) -> Task:
    if prompts is None:
        return author.self_written(number)
    prompt = prompts[number]
    if prompt.is_text:
        return author.continued(number, prompt.turns[0])
    return author.answered(number, prompt.category, list(prompt.turns))


def _claim(job: Job) -> None:
    """Note whose samples the directory holds, and how they are written."""
    directory = job.training.directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / _TARGET).is_file():
            owner = {"name": job.target.name, "sha256": target_hash(job.target), "data": _asked(job.training)}
            write_json(directory / _TARGET, owner, indent=None)
    except OSError as error:
        raise DataError(f"{directory} cannot be written: {error.strerror}") from error
    _check_claim(job)


def _asked(training: TrainingSpec) -> dict[str, Any]:
    """What decides the samples but for their number."""
    asked = training.data.model_dump(mode="json", include={"max_response_tokens", "greedy", "temperature"})
    path = training.data.path
    prompts = f"{path.name} {file_sha256(path)[:12]}" if path is not None and path.is_file() else "its own"
    held_out = sorted({path.name for path in training.data.held_out_files})
    return {"prompts": prompts, **asked, "seed": training.seed, "held_out": held_out}


def _check_claim(job: Job) -> None:
    directory = job.training.directory
    try:
        owner = read_json_object(directory / _TARGET, DataError)
        name, digest = owner["name"], owner["sha256"]
    except (DataError, KeyError):
        raise DataError(
            f"{directory / _TARGET} is missing or damaged; it says which target wrote the samples"
        ) from None
    if digest != target_hash(job.target):
        raise DataError(
            f"the samples in {directory} were written by {name}, which is not the model in {job.target}; name another "
            "training.directory"
        )
    asked = _asked(job.training)
    changed = [key for key, value in owner.get("data", asked).items() if asked.get(key) != value]
    if changed:
        told = ", ".join(f"{key} {owner['data'][key]}, not {asked.get(key)}" for key in changed)
        raise DataError(
            f"the samples in {directory} were written with {told}; name another training.directory, or change it back"
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
    """Samples to learn from, not too few, and the first of those to measure on."""
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
    name = read_json_object(training.directory / _TARGET, DataError)["sha256"]
    cache = CachedFeatures(training.directory / _FEATURES, layers, target.hidden_size, name)
    state = PartialState()
    if state.is_main_process:
        cache.extend(samples, target, lambda done, all_: report(f"hidden states {done}/{all_}", done / all_))
    state.wait_for_everyone()
    cache.open(samples)
    return cache


def _stages(job: Job) -> list[tuple[str, LoopSettings]]:
    """Directory name and settings of each stage."""
    training = job.training
    shared: dict[str, Any] = {
        key: getattr(training, key)
        for key in (
            *("batch_tokens", "accumulation", "optimizer", "learning_rate", "seed"),
            *("save_every", "evaluate_every", "mixed_precision", "tensorboard"),
        )
    }
    shared["evaluate_first"] = training.from_pretrained is not None
    first, second = training.epochs_of("inputs"), training.epochs_of("outputs")
    inputs = (f"{job.name}-inputs", LoopSettings(**shared, epochs=first, everything=True))
    outputs = (f"{job.name}-outputs", LoopSettings(**shared, epochs=second))
    recipe = "both" if job.method == "mlp_speculator" else "outputs"
    return {"both": [inputs, outputs], "inputs": [inputs], "outputs": [outputs]}[training.stages or recipe]


def _identity(
    job: Job, target: FrozenTarget, samples: Sequence[Sample], vocabulary: int, processes: int
) -> dict[str, Any]:
    """Everything that decides the weights."""
    own = own_settings(job.method, job.training, target.num_layers)
    return {
        "method": job.method,
        "target": {"name": job.target.name, "sha256": target_hash(job.target)},
        "samples": {"count": len(samples), "sha256": content_hash(samples)},
        "settings": settings_used(job.training, {"draft_vocab_size": vocabulary, **own}),
        "epochs": {name.removeprefix(f"{job.name}-"): loop.epochs for name, loop in _stages(job)},
        "processes": processes,
    }


def _begin(job: Job, identity: dict[str, Any], state: PartialState, *, fresh: bool) -> None:
    """Take up the run of this identity, or begin it; every process looks, one writes."""
    directories = [job.training.directory / name for name, _ in _stages(job)]
    for directory in directories:
        check_run(directory, identity, fresh=fresh)
    state.wait_for_everyone()
    if state.is_main_process:
        for directory in directories:
            begin_run(directory, identity, fresh=fresh)
    state.wait_for_everyone()


def _write(checkpoint: Path, trainee: Trainee, content: dict[str, Any]) -> None:
    try:
        with replace_directory(checkpoint, PROVENANCE_FILE, unlisted_files(checkpoint)) as partial:
            trainee.save(partial)
            write_provenance(partial, content)
    except OSError as error:
        raise TrainingError(f"{checkpoint} cannot be written: {error}") from error
