"""`drafthouse doctor`, `model`, `build`: what comes before serving."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from build.compile import compile_engine
from build.repository import assemble_repository
from build.targets.prepare import prepare_target
from cli.common import SpecArgument, console, progress, read_spec, told
from deploy.triton import python_library
from deployments.spec import DeploymentSpec

_PACKAGES = ("openvino", "nvidia-pytriton", "tritonclient", "locust", "torch", "tensorrt-llm")
_PROGRAMS = ("docker", "nvidia-smi", "make")


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
        table.add_row(package, _version(package), "production engines" if package == "tensorrt-llm" else "")
    for program in _PROGRAMS:
        table.add_row(program, _program(program), "")
    console.print(table)


def model(
    source: Annotated[str, typer.Argument(help="smollm2-135m, a GGUF file, or a Hugging Face directory.")],
    directory: Annotated[Path, typer.Argument(help="Where the target goes, in Hugging Face layout.")],
) -> None:
    """Make a target model in Hugging Face layout."""
    with told():
        _prepare(source, directory)


def build(spec_path: SpecArgument) -> None:
    """Compile the target and assemble the Triton model repository."""
    with told():
        build_deployment(read_spec(spec_path))


def build_deployment(spec: DeploymentSpec) -> None:
    """Model (if the spec says where from), engine, repository; what is up to date is left alone."""
    if spec.target.source is not None and not spec.target.model.exists():
        _prepare(spec.target.source, spec.target.model)
    compile_engine(
        spec.target.model,
        spec.engine_directory,
        precision=spec.engine.precision,
        max_sequence_length=spec.engine.max_sequence_length,
        report=lambda line: console.print(f"build: {line}"),
    )
    repository = assemble_repository(spec, spec.engine_directory, spec.serving.repository)
    console.print(f"build: model repository in {repository}")


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


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        return "not found"
    found = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=10)
    return (found.stdout.splitlines() or [path])[0]


if sys.platform != "linux":  # tritonserver in the wheel is a Linux program
    raise SystemExit("drafthouse runs on Linux; the Triton server it starts is a Linux program")
