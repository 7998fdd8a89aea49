"""`drafthouse doctor`: what is on this machine, and a verdict for everything that it could be used for."""

import platform

from rich.table import Table

from cli.common import console, folded, progress, say
from cli.machine import (
    Journey,
    compose_version,
    gpus,
    journeys,
    memory_told,
    output,
    package_version,
    tensorrt_llm_release,
    vllm_told,
)
from deploy.triton import python_library
from engine.attention_kernels import WHY_NOT
from engine.fingerprint import processor
from engine.native.library import has_vnni, instructions

_PACKAGES = ("openvino", "nvidia-pytriton", "tritonclient", "locust", "torch")


def doctor() -> None:
    """Say what is on this machine, and what works here: the demo, training, TensorRT-LLM, vLLM."""
    with progress() as show:
        show("asking the machine", None)
        parts, found = _parts(), list(journeys())
    console.print(parts)
    for item in found:
        _verdict(item)


def _parts() -> Table:
    table = Table("part", "found", header_style="bold")
    table.columns[1].overflow = "fold"
    table.add_row("Python", platform.python_version())
    table.add_row("processor", f"{processor()}, {memory_told()}")
    table.add_row("shared libpython", str(python_library() or "missing"))
    kernel = instructions()
    table.add_row("attention kernel", f"native, {kernel}" if kernel else f"openvino: {WHY_NOT}")
    table.add_row("linear layers", _linear_layers())
    for package in _PACKAGES:
        table.add_row(package, package_version(package))
    table.add_row("tensorrt-llm", tensorrt_llm_release())
    for part, told in vllm_told():
        table.add_row(part, told)
    table.add_row("GPUs", "\n".join(gpus()) or "none")
    table.add_row("docker compose", compose_version() or "does not work, or is not there")
    make = output("make", "--version")
    table.add_row("make", make[0] if make else "not found")
    return table


def _linear_layers() -> str:
    if instructions() is None:
        return "openvino"
    if has_vnni():
        return "native for int4, openvino for int8 (VNNI) and fp32"
    return "native for int4 and int8 (no VNNI), openvino for fp32"


def _verdict(journey: Journey) -> None:
    if not journey.reasons:
        console.print(f"[bold]{journey.name}:[/] [green]yes[/]")
        say(f"    {journey.begin}")
        return
    console.print(f"[bold]{journey.name}:[/] [red]no[/], because")
    for reason in journey.reasons:
        say(folded(reason, indent=4))
