"""`drafthouse train`: data that the target writes, its hidden states, and the speculator that the spec names."""

from itertools import chain
from typing import Annotated, Any, Literal

import typer

from build.compile import compile_engine
from build.targets.architecture import Architecture
from cli.common import SpecArgument, console, progress, read_spec, told
from cli.prepare import fetch_target
from client.chat import ChatTemplate
from deployments.spec import DeploymentSpec, SpecError
from engine.deployment import open_runner
from engine.engine import Engine, EngineLimits
from engine.runner import BLOCK_SIZE
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
) -> None:
    """Train the speculator that the spec names against its target; goes on where it was stopped."""
    with told():
        spec = read_spec(spec_path)
        fetch_target(spec)
        job = _job(spec)
        _gather(spec, job)
        if only is None:
            _train(job)


def _job(spec: DeploymentSpec) -> Any:
    # Accelerate and PyTorch are in the extra `train`; the other commands do without.
    try:
        from speculators.training.run import Job
    except ModuleNotFoundError as error:
        raise SpecError(
            f"training needs the package {error.name}: pip install 'drafthouse\\[train]', or make setup-dev"
        ) from None
    speculation = spec.speculation
    checkpoint = getattr(speculation, "checkpoint", None) or getattr(speculation, "model", None)
    if checkpoint is None:
        raise SpecError(f"speculation.method {speculation.method} has nothing to train")
    return Job(speculation.method, spec.target.model, checkpoint, spec.training)


def _gather(spec: DeploymentSpec, job: Any) -> None:
    from speculators.training.run import gather, is_gathered

    if is_gathered(job):
        return
    precision = spec.embedded.precision
    compile_engine(
        spec.target.model,
        spec.engine_directory,
        precision=precision,
        max_sequence_length=spec.embedded.max_sequence_length,
        report=lambda line: console.print(f"train: {line}"),
    )
    with progress() as show:
        tokens = gather(job, _author(spec), _writer(spec), show)
    console.print(f"train: {tokens:,} response tokens in {job.training.directory}")


def _author(spec: DeploymentSpec) -> Author:
    data, directory = spec.training.data, spec.target.model
    codec, template = TextCodec(directory), ChatTemplate.from_directory(directory)
    end_ids = Architecture.from_directory(directory).eos_token_ids
    end_id = turn_end(template.render, lambda text: [*chain(*codec.encode_words([text]))], end_ids)
    return Author(
        ChatFormat(template.render, codec.encode, codec.decode, end_id),
        HeldOut(data.held_out),
        AnswerStyle(data.max_response_tokens, data.greedy, data.temperature),
        spec.training.seed,
        max_length=spec.embedded.max_sequence_length,
    )


def _writer(spec: DeploymentSpec) -> EngineWriter:
    size, length = spec.training.data.batch_size, spec.embedded.max_sequence_length
    limits = EngineLimits(size, length, max_queue_size=size, prefill_chunk=512)
    blocks = -(-length // BLOCK_SIZE) * size
    runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=blocks)
    end_ids = Architecture.from_directory(spec.target.model).eos_token_ids
    return EngineWriter(Engine(runner, create("none"), limits), end_ids)


def _train(job: Any) -> None:
    from speculators.training.records import Evaluation, TrainingStep
    from speculators.training.run import train as run

    def tell(record: TrainingStep | Evaluation) -> None:
        if isinstance(record, Evaluation):
            shares = " ".join(map(_figure, record.by_position))
            console.print(
                f"step {record.step}: acceptance length {_figure(record.length)} held out ({shares})"
            )
        else:
            rate = record.tokens / max(record.seconds, 1e-9)
            show(
                f"step {record.step}/{record.steps}: loss {record.loss:.3f}, acceptance {record.acceptance:.2f}, "
                f"{rate:,.0f} tokens/s",
                record.step / record.steps,
            )

    with progress() as show:
        final = run(job, show, tell)
    console.print(f"train: {job.checkpoint}: acceptance length {_figure(final.length)} on held-out output")


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
