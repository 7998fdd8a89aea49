"""`drafthouse doctor`, `model`, `build`: what comes before serving."""

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.embedded_checks import embedded_findings
from build.repository import assemble_repository
from build.targets.prepare import prepare_target
from build.trtllm.installed import installed_version
from build.trtllm.lines import line_of_version
from cli.common import SpecArgument, console, progress, read_spec, told
from cli.trtllm import RunnerName, checked, print_plan, run_build, tell
from deploy.triton import python_library
from deployments.engines import EmbeddedEngine
from deployments.spec import DeploymentSpec, SpecError

_PACKAGES = ("openvino", "nvidia-pytriton", "tritonclient", "locust", "torch")
_PROGRAMS = ("docker", "make")


def doctor() -> None:
    """Say what is on this machine: processor, GPU, Docker, Triton, and their versions."""
    table = Table("part", "found", "needed for")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    table.add_row("Python", platform.python_version(), "3.10 to 3.12")
    table.add_row("processor", f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB", "embedded engine")
    table.add_row(
        "shared libpython", str(python_library() or "missing: see README"), "Triton's Python backend"
    )
    for package in _PACKAGES:
        table.add_row(package, _version(package), "")
    table.add_row("tensorrt-llm", _tensorrt_llm(), "production engines; or Docker, whose images have it")
    gpus = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader", lines=16)
    table.add_row("GPUs", gpus, "production engines")
    table.add_row(
        "docker compose", _output("docker", "compose", "version"), "drafthouse build --runner compose"
    )
    for program in _PROGRAMS:
        table.add_row(program, _output(program, "--version"), "")
    console.print(table)


def model(
    source: Annotated[str, typer.Argument(help="smollm2-135m, a GGUF file, or a Hugging Face directory.")],
    directory: Annotated[Path, typer.Argument(help="Where the target goes, in Hugging Face layout.")],
) -> None:
    """Make a target model in Hugging Face layout."""
    with told():
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
    with told():
        spec = read_spec(spec_path)
        if check:
            _check(spec)
        elif dry_run:
            _print_plan(spec, spec_path, runner)
        elif isinstance(spec.engine, EmbeddedEngine):
            build_deployment(spec)
        else:
            fetch_target(spec)
            run_build(spec, spec_path, runner)


def _check(spec: DeploymentSpec) -> None:
    if isinstance(spec.engine, EmbeddedEngine):
        check_embedded(spec)
    else:
        checked(spec, "build")
    console.print(f"check: nothing speaks against building {spec.name}")


def check_embedded(spec: DeploymentSpec) -> None:
    """Tell what the embedded engine cannot do of the deployment; errors end the command."""
    findings = tuple(embedded_findings(spec))
    tell(findings)
    if findings:
        raise SystemExit(2)


def _print_plan(spec: DeploymentSpec, spec_path: Path, runner: RunnerName | None) -> None:
    if not isinstance(spec.engine, EmbeddedEngine):
        print_plan(spec, spec_path, runner)
        return
    check_embedded(spec)
    if spec.target.source is not None:
        print(shlex.join(["drafthouse", "model", spec.target.source, str(spec.target.model)]))
    print(shlex.join(["drafthouse", "build", str(spec_path)]))


def build_deployment(spec: DeploymentSpec) -> None:
    """Model (if the spec says where from), speculator, engine, repository; what is up to date is left alone."""
    check_embedded(spec)
    fetch_target(spec)
    # The speculator comes first: one that does not fit the target is refused before anything is built.
    compile_speculator(
        spec.speculation,
        spec.speculator_directory,
        target=spec.target.model,
        precision=spec.speculator_precision,
        max_sequence_length=spec.embedded.max_sequence_length,
        report=lambda line: console.print(f"build: {line}"),
    )
    compile_engine(
        spec.target.model,
        spec.engine_directory,
        precision=spec.embedded.precision,
        max_sequence_length=spec.embedded.max_sequence_length,
        report=lambda line: console.print(f"build: {line}"),
    )
    repository = assemble_repository(spec, spec.engine_directory, spec.serving.repository)
    console.print(f"build: model repository in {repository}")


def fetch_target(spec: DeploymentSpec) -> None:
    """The spec's target, if it is not there yet and the spec says where from."""
    if spec.target.source is not None and not spec.target.model.exists():
        _prepare(spec.target.source, spec.target.model)


def _prepare(source: str, directory: Path) -> None:
    with progress() as show:
        summary = prepare_target(source, directory, show)
    size = f"{summary.num_parameters / 1e6:.0f}M parameters, {summary.weight_bytes / 2**20:.0f} MiB"
    console.print(
        f"model: {summary.architecture.family}, {size}, in {summary.directory}" + " (reused)" * summary.reused
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _tensorrt_llm() -> str:
    """The installed release and its line."""
    release = installed_version()
    if release is None:
        return "not installed"
    try:
        return f"{release}, line {line_of_version(release).name}"
    except SpecError as error:
        return str(error)


def _output(name: str, *arguments: str, lines: int = 1) -> str:
    """The first lines of what a program says."""
    path = shutil.which(name)
    if path is None:
        return "not found"
    found = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=10)
    said = found.stdout.splitlines()[:lines]
    return "\n".join(said) if found.returncode == 0 and said else f"{name} {' '.join(arguments)} fails"


if sys.platform != "linux":  # tritonserver in the wheel is a Linux program
    raise SystemExit("drafthouse runs on Linux; the Triton server it starts is a Linux program")
