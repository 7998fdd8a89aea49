"""`drafthouse train`: data that the target writes, its hidden states, and the speculator that the spec names."""

from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from build.compile import compile_engine
from build.targets.architecture import Architecture
from cli.common import SpecArgument, progress, read_spec, say, told
from cli.prepare import fetch_target
from client.chat import ChatTemplate
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec, SpecError
from engine.deployment import open_runner
from engine.engine import Engine
from engine.policy import StaticPolicy
from engine.runner import BLOCK_SIZE
from engine.scheduler import EngineConfig
from engine.serving.text import TextCodec
from engine.writing import EngineWriter
from speculators.data.overlap import HeldOut
from speculators.data.self_written import AnswerStyle, Author
from speculators.data.writing import ChatFormat, turn_end
from speculators.registry import create


def train(
    spec_path: SpecArgument,
    only: Annotated[
        Literal["data"] | None, typer.Option(help="Stop after the data: before `accelerate launch`.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an earlier run of this deployment aside and begin anew.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the checkpoint of another run, where one is.")
    ] = False,
) -> None:
    """Train the speculator that the spec names against its target; goes on where it was stopped."""
    with told() as stop:
        spec = read_spec(spec_path)
        with progress() as show:
            show("loading PyTorch", None)
            job = _job(spec)
        from speculators.training.run import check_places, kept, settled

        if only is None:
            check_places(job, fresh=fresh, replace=replace)
        same = "the same command" + " without --fresh" * fresh
        stop.kept = lambda: f"{kept(job)}; {same} goes on there"
        fetch_target(spec)
        settled(job, Architecture.from_directory(spec.target.model))  # or refused, before hours of work
        _gather(spec, job)
        if only is None:
            _train(job, fresh=fresh, replace=replace)
            say(f"next: {_next(spec, job.checkpoint)}drafthouse serve {spec_path}")


def _job(spec: DeploymentSpec) -> Any:
    # Accelerate and PyTorch are in the extra `train`; the other commands do without.
    try:
        from speculators.training.run import Job
    except ModuleNotFoundError as error:
        raise SpecError(
            f"training needs the package {error.name}: pip install 'drafthouse[train]', or make setup-dev"
        ) from None
    speculation = spec.speculation
    checkpoint = spec.training.checkpoint or drafter_source(speculation)
    if checkpoint is None:
        raise SpecError(f"speculation.method {speculation.method} has nothing to train")
    return Job(spec.name, speculation.method, spec.target.model, checkpoint, spec.training)


def _gather(spec: DeploymentSpec, job: Any) -> None:
    from speculators.training.run import gather, is_gathered

    if is_gathered(job):
        return
    precision = spec.embedded.precision
    with progress() as show:

        def report(line: str) -> None:
            say(f"train: {line}")
            show(line, None)

        show(f"reading {spec.target.model}", None)
        compile_engine(
            spec.target.model,
            spec.engine_directory,
            precision=precision,
            max_sequence_length=spec.embedded.max_sequence_length,
            report=report,
        )
        show("loading the engine", None)
        tokens = gather(job, _author(spec), _writer(spec), show)
    say(f"train: {tokens:,} response tokens in {job.training.directory}")


def _author(spec: DeploymentSpec) -> Author:
    data, directory = spec.training.data, spec.target.model
    codec, template = TextCodec(directory), ChatTemplate.from_directory(directory)
    end_ids = Architecture.from_directory(directory).eos_token_ids
    end_id = turn_end(template.render, lambda text: [*chain(*codec.encode_words([text]))], end_ids)
    return Author(
        ChatFormat(template.render, codec.encode, codec.decode, end_id),
        HeldOut(data.held_out_files),
        AnswerStyle(data.max_response_tokens, data.greedy, data.temperature),
        spec.training.seed,
        max_length=spec.embedded.max_sequence_length,
    )


def _writer(spec: DeploymentSpec) -> EngineWriter:
    size, length = spec.training.data.batch_size, spec.embedded.max_sequence_length
    config = EngineConfig(size, length, max_queue_size=size, prefill_chunk=512)
    blocks = -(-length // BLOCK_SIZE) * size
    runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=blocks)
    end_ids = Architecture.from_directory(spec.target.model).eos_token_ids
    return EngineWriter(Engine(runner, StaticPolicy([create("none")]), config), end_ids)


def _train(job: Any, *, fresh: bool, replace: bool) -> None:
    from speculators.training.records import Evaluation, Started, TrainingStep
    from speculators.training.run import train as run

    def tell(record: Started | TrainingStep | Evaluation) -> None:
        if isinstance(record, Started):
            say(f"train: {_beginning(record)}")
        elif isinstance(record, Evaluation):
            shares = " ".join(map(_figure, record.by_position))
            say(f"step {record.step}: acceptance length {_figure(record.length)} held out ({shares})")
        else:
            rate = record.tokens / max(record.seconds, 1e-9)
            show(
                f"step {record.step}/{record.steps}: loss {record.loss:.3f}, acceptance {record.acceptance:.2f}, "
                f"{rate:,.0f} tokens/s",
                record.step / record.steps,
            )

    with progress() as show:
        final = run(job, show, tell, fresh=fresh, replace=replace)
    say(f"train: {job.checkpoint}: acceptance length {_figure(final.length)} on held-out output")


def _next(spec: DeploymentSpec, checkpoint: Path) -> str:
    """What has to be changed in the spec before it is served with the new checkpoint."""
    if checkpoint == drafter_source(spec.speculation):
        return ""
    key = "checkpoint" if hasattr(spec.speculation, "checkpoint") else "model"
    return f"speculation.{key}: {checkpoint} in the spec, then\n      "


def _beginning(record: Any) -> str:
    if record.step == record.steps:
        return f"{record.run} had ended with step {record.steps:,}"
    if record.step:
        return f"{record.run} goes on after step {record.step:,} of {record.steps:,}"
    return f"{record.run} begins, {record.steps:,} steps"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
