"""What is on this machine, and what it can be used for."""

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from build.embedded_memory import GIB, machine_bytes
from build.trtllm.installed import installed_version
from build.trtllm.releases import line_of_version
from build.vllm.installed import installed_vllm, methods_written_for, vllm_place
from deploy.server import TritonError, check_port
from deploy.triton import check_installation
from deployments.findings import Finding
from deployments.spec import DeploymentSpec, SpecError
from engine.vllm.plugin import NAME as PLUGIN
from planner.bench.peers.environments import last_line
from planner.bench.peers.processes import ProgramError

_DEMO_PORTS = (8000, 8001, 8002, 8010, 8011, 8012)
_DEMO_GIB = 4.0  # two deployments at once
_VLLM_GIB = 6.0  # wheels and what is unpacked of them
_TRAINING = ("torch", "accelerate", "transformers")


@dataclass(frozen=True)
class Journey:
    """What somebody may want to do here.

    Attributes:
        name: what it is.
        reasons: why it cannot be done, and what to do about it; empty if it can.
        begin: the command that it begins with.
    """

    name: str
    reasons: tuple[str, ...]
    begin: str


def journeys() -> Iterator[Journey]:
    """Verdicts on all journeys."""
    embedded = tuple(_embedded())
    yield Journey("demo", (*embedded, *_room(), *_taken(_DEMO_PORTS)), "make demo")
    yield Journey("your model on this CPU", embedded, "drafthouse model SOURCE models/NAME")
    missing = [name for name in _TRAINING if importlib.util.find_spec(name) is None]
    without = f"not installed: {', '.join(missing)} (make setup-dev)"
    yield Journey(
        "train a speculator",
        (*embedded, *([without] if missing else [])),
        "drafthouse train deployments/smollm2-eagle3.yaml",
    )
    plan = "drafthouse build --dry-run deployments/llama3-8b-eagle3-trtllm.yaml"
    yield Journey("TensorRT-LLM, plan alone", (), plan)
    yield Journey("TensorRT-LLM, build and serve", tuple(_tensorrt_llm()), plan.replace("--dry-run ", ""))
    yield Journey("vLLM", tuple(_vllm()), "drafthouse serve deployments/smollm2-eagle3-vllm.yaml")
    compose = () if compose_version() else ("docker compose does not work, or is not there",)
    yield Journey("Docker Compose, monitoring", compose, "mkdir -p models runs; docker compose up")
    kubectl = () if shutil.which("kubectl") else ("kubectl is not found",)
    yield Journey("Kubernetes", kubectl, "kubectl apply -k deploy/kubernetes/single-gpu")


def server_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """What `drafthouse serve` would refuse on this machine."""
    for reason in _embedded():
        yield Finding("machine", "error", reason)
    if spec.embedded.backend == "torch" and importlib.util.find_spec("torch") is None:
        yield Finding("machine", "error", "engine.backend: torch needs PyTorch", "make setup-dev")
    serving = spec.serving
    for key in ("http_port", "grpc_port", "metrics_port"):
        try:
            check_port(serving.host, key, getattr(serving, key))
        except TritonError as error:
            yield Finding("port-in-use", "warning", str(error))


def package_version(name: str) -> str:
    """Version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def tensorrt_llm_release() -> str:
    """The installed release and its line."""
    release = installed_version()
    if release is None:
        return "not installed"
    try:
        return f"{release}, line {line_of_version(release).name}"
    except SpecError as error:
        return str(error)


def vllm_told() -> Iterator[tuple[str, str]]:
    """The vLLM that `serve` would take: its release and place, the kit's methods that it has, its plugins."""
    found = installed_vllm()
    if found is None:
        yield "vllm", "not installed"
        return
    yield "vllm", f"{found.package.version} in {found.environment.directory}"
    lacking = sorted(set(methods_written_for()) - set(found.methods()))
    yield (
        "vllm's methods",
        ", ".join(found.methods()) + (f"; without {', '.join(lacking)}" if lacking else ""),
    )
    try:
        plugins = found.plugins()
    except ProgramError as error:
        yield "vllm's plugins", f"its interpreter does not say: {last_line(error)}"
        return
    ours = "drafthouse, with a repository" if PLUGIN in plugins else "drafthouse is not seen"
    yield "vllm's plugins", ", ".join([ours, *(name for name in plugins if name != PLUGIN)])


def gpus() -> Sequence[str]:
    """Name and memory of each."""
    return output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or ()


def compose_version() -> str | None:
    """What `docker compose version` says; None if it does not work."""
    said = output("docker", "compose", "version")
    return said[0] if said else None


def output(name: str, *arguments: str) -> Sequence[str] | None:
    """The lines that a program says; None if it is not there, fails, or takes ten seconds. It is asked once."""
    path = shutil.which(name)
    return None if path is None else _said(path, arguments)


@functools.cache
def _said(path: str, arguments: tuple[str, ...]) -> tuple[str, ...] | None:
    try:
        found = subprocess.run([path, *arguments], capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tuple(found.stdout.splitlines()) if found.returncode == 0 else None


def _embedded() -> Iterator[str]:
    if platform.machine() != "x86_64":
        yield f"Triton's wheel is for x86-64, this is {platform.machine()}"
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        yield f"Python 3.10 to 3.12 is needed, this is {platform.python_version()}: make PYTHON=python3.11 setup"
    if importlib.util.find_spec("openvino") is None:
        yield "not installed: openvino (make setup)"
    try:
        check_installation()
    except TritonError as error:
        yield str(error)


def _room() -> Iterator[str]:
    memory = machine_bytes() / GIB
    if memory < _DEMO_GIB:
        yield f"there are {memory:.1f} GiB of memory, and {_DEMO_GIB:.0f} are needed"
    free = shutil.disk_usage(Path.cwd()).free / GIB
    if free < 2:
        yield f"{free:.1f} GiB of disk are free, and 2 are needed"


def _taken(ports: Sequence[int]) -> Iterator[str]:
    taken = []
    for port in ports:
        try:
            check_port("127.0.0.1", "port", port)
        except TritonError:
            taken.append(str(port))
    if taken:
        yield f"something listens on port {', '.join(taken)}; stop it first"


def _tensorrt_llm() -> Iterator[str]:
    if not gpus():
        yield "there is no NVIDIA GPU here (nvidia-smi lists none)"
    if installed_version() is None and compose_version() is None:
        yield "neither TensorRT-LLM nor Docker Compose is here: run inside NVIDIA's container, or install Docker"


def _vllm() -> Iterator[str]:
    """Why `serve` could neither take one that is here, nor start its container, nor install its CPU build."""
    if installed_vllm() is not None:
        return
    if gpus():
        if compose_version() is None:
            yield "neither vLLM nor Docker Compose is here: run inside NVIDIA's container, or install Docker"
        return
    yield from _embedded()
    if (free := shutil.disk_usage(vllm_place().anchor).free / GIB) < _VLLM_GIB:
        yield f"{free:.1f} GiB of disk are free, and vLLM's CPU build needs {_VLLM_GIB:.0f}"


def memory_told() -> str:
    """Memory and cores."""
    return f"{os.cpu_count()} cores, {machine_bytes() / GIB:.0f} GiB"
