"""`drafthouse model` and `build`: what comes before serving."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.repository import assemble_repository
from build.targets.prepare import prepare_target
from cli.common import SpecArgument, progress, read_spec, say, told
from cli.findings import check_embedded, check_settings
from cli.trtllm import RunnerName, checked, print_plan, run_build
from cli.vllm import build_vllm, check_vllm
from deployments.engines import EmbeddedEngine, TensorRtLlmEngine, VllmEngine
from deployments.spec import DeploymentSpec
from engine.planned import drafting


def model(
    source: Annotated[str, typer.Argument(help="smollm2-135m, a GGUF file, or a Hugging Face directory.")],
    directory: Annotated[Path, typer.Argument(help="Where the target goes, in Hugging Face layout.")],
) -> None:
    """Make a target model in Hugging Face layout."""
    with told() as stop:
        stop.kept = f"{directory} is as it was; the same command begins again"
        _prepare(source, directory)


def build(
    spec_path: SpecArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would fail, with reasons; build nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands, ready to be pasted; run nothing.")
    ] = False,
    runner: Annotated[
        RunnerName | None,
        typer.Option(
            help="TensorRT-LLM: run the commands here, or in containers of Docker Compose; by default here if "
            "TensorRT-LLM is installed."
        ),
    ] = None,
) -> None:
    """Compile the engines and assemble the Triton model repository."""
    with told() as stop:
        spec = read_spec(spec_path)
        stop.kept = "what was finished is kept; the same command goes on"
        if check:
            _check(spec)
        elif dry_run:
            _print_plan(spec, spec_path, runner)
        elif isinstance(spec.engine, EmbeddedEngine):
            build_deployment(spec)
        elif isinstance(spec.engine, VllmEngine):
            fetch_target(spec)
            build_vllm(spec)
        else:
            fetch_target(spec)
            run_build(spec, spec_path, runner)


def _check(spec: DeploymentSpec) -> None:
    if isinstance(spec.engine, EmbeddedEngine):
        check_embedded(spec, everything=True)
    elif isinstance(spec.engine, VllmEngine):
        check_vllm(spec)
    else:
        checked(spec, "build")
    unmade = "" if spec.target.model.exists() else f", as far as can be told without {spec.target.model}"
    say(f"check: nothing speaks against building {spec.name}{unmade}")


def _print_plan(spec: DeploymentSpec, spec_path: Path, runner: RunnerName | None) -> None:
    if isinstance(spec.engine, TensorRtLlmEngine):
        print_plan(spec, spec_path, runner)
        return
    if isinstance(spec.engine, VllmEngine):
        check_vllm(spec)
    else:
        check_settings(spec)
    if spec.target.source is not None:
        print(shlex.join(["drafthouse", "model", spec.target.source, str(spec.target.model)]))
    print(shlex.join(["drafthouse", "build", str(spec_path)]))


def build_deployment(spec: DeploymentSpec) -> None:
    """Model (if the spec says where from), speculator, engine, repository; what is up to date is left alone."""
    build_engines(spec)
    repository = assemble_repository(spec, spec.engine_directory, spec.serving.repository)
    say(f"build: model repository in {repository}")


def build_engines(spec: DeploymentSpec) -> None:
    """The same without the repository, for what runs the engine by itself."""
    prepare_models(spec)
    with progress() as show:

        def report(line: str) -> None:
            say(f"build: {line}")
            show(line, None)

        show(f"reading {spec.target.model}", None)
        # The speculator comes first: one that does not fit the target is refused before anything is built.
        for each in drafting(spec):
            compile_speculator(
                each.speculation,
                each.speculator_directory,
                target=spec.target.model,
                precision=each.speculator_precision,
                max_sequence_length=spec.embedded.max_sequence_length,
                report=report,
            )
        compile_engine(
            spec.target.model,
            spec.engine_directory,
            precision=spec.embedded.precision,
            max_sequence_length=spec.embedded.max_sequence_length,
            report=report,
        )


def prepare_models(spec: DeploymentSpec) -> None:
    """Check the deployment, and fetch the target if it has to be fetched; then check what depends on it."""
    there = spec.target.model.exists()
    with progress() as show:
        show("checking the deployment", None)
        check_embedded(spec)
    if not there:
        fetch_target(spec)
        check_embedded(spec)


def fetch_target(spec: DeploymentSpec) -> None:
    """The spec's target, if it is not there yet and the spec says where from."""
    if spec.target.source is not None and not spec.target.model.exists():
        _prepare(spec.target.source, spec.target.model)


def _prepare(source: str, directory: Path) -> None:
    with progress() as show:
        summary = prepare_target(source, directory, show)
    size = f"{summary.num_parameters / 1e6:.0f}M parameters, {summary.weight_bytes / 2**20:.0f} MiB"
    reused = " (reused)" * summary.reused
    say(f"model: {summary.architecture.family}, {size}, in {summary.directory}{reused}")


if sys.platform != "linux":  # tritonserver in the wheel is a Linux program
    raise SystemExit("drafthouse runs on Linux; the Triton server it starts is a Linux program")
