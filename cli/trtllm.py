"""Building and serving deployments on TensorRT-LLM: pre-flight, plan, launch."""

import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from build.plan.run import run_plan, script
from build.plan.runners import ComposeRunner, LocalRunner, Runner
from build.triton.llmapi import as_yaml
from build.trtllm.checks.preflight import Stage, preflight
from build.trtllm.failures import explain
from build.trtllm.installed import installed_version
from build.trtllm.llm_api.arguments import llm_arguments
from build.trtllm.plan import plan_directory, plan_steps
from build.trtllm.resolved import Resolved
from build.trtllm.topology import python_path, topology_of
from cli.common import progress, say
from cli.findings import tell
from cli.serving import serve_in_container, serve_until_ended
from deploy.server import TritonError
from deploy.trtllm_launch import Launch, hosts_from
from deploy.trtllm_server import START_SECONDS, TensorRtLlmServer, tensorrt_llm_triton
from deployments.files.directories import in_use
from deployments.spec import DeploymentSpec, SpecError

RunnerName = Literal["local", "compose"]


def checked(spec: DeploymentSpec, stage: Stage) -> Resolved:
    """The deployment with nothing left open; findings are told, and errors among them end the command."""
    result = preflight(spec, stage)
    tell(result.findings)
    if result.failed or result.resolved is None:
        raise SystemExit(2)
    return result.resolved


def print_plan(spec: DeploymentSpec, spec_path: Path, runner: RunnerName | None) -> None:
    """The plan as shell commands, on standard output alone; what they write for the LLM API as comments."""
    resolved = checked(spec, "print")
    print(script(plan_steps(resolved, spec_path), _runner(runner, resolved)))
    if resolved.runtime == "llm_api":
        print(f"# which writes {spec.serving.repository}/tensorrt_llm/1/model.yaml with:")
        print(textwrap.indent(as_yaml(llm_arguments(resolved)), "#   "), end="")


def run_build(spec: DeploymentSpec, spec_path: Path, runner: RunnerName | None) -> None:
    """Check, and run what is not up to date."""
    resolved = checked(spec, "build")
    with progress() as show:
        run_plan(
            plan_steps(resolved, spec_path),
            plan_directory(resolved),
            _runner(runner, resolved),
            explain=explain,
            report=lambda line: say(f"build: {line}"),
            show=lambda line: show(f"build: {line}", None),
        )
    say(f"build: model repository in {spec.serving.repository}")


def _runner(name: RunnerName | None, resolved: Resolved) -> Runner:
    """Here where TensorRT-LLM is, otherwise in containers."""
    if name == "local" or (name is None and installed_version() is not None):
        return _here()
    return ComposeRunner(Path(f"deploy/compose/line-{resolved.line.name.lower()}.env"))


def _here() -> LocalRunner:
    return LocalRunner({"tensorrt_llm": installed_version() or "not installed"})


def serve_trtllm(spec: DeploymentSpec, spec_path: Path, log: Path) -> None:
    """Serve until Ctrl-C where TensorRT-LLM's Triton is installed; elsewhere start its container and return."""
    if tensorrt_llm_triton() is None:
        resolved = checked(spec, "print")
        kind = f"line-{resolved.line.name.lower()}"
        serve_in_container(spec_path, kind, "TensorRT-LLM", resolved.triton_image)
        return
    resolved = checked(spec, "serve")
    steps = plan_steps(resolved, spec_path)
    run_plan(
        [step for step in steps if not step.image],  # those take seconds; no engine is built
        plan_directory(resolved),
        _here(),
        explain=explain,
        report=lambda line: say(f"serve: {line}"),
    )
    read = [output for step in steps for output in step.outputs]
    serve_until_ended(lambda: _running(resolved, read, log), spec, log)


@contextmanager
def _running(resolved: Resolved, read: Sequence[Path], log: Path) -> Iterator[TensorRtLlmServer]:
    """The server, ready, and what it reads kept from being replaced; stopped at the end."""
    name = resolved.spec.name
    with in_use(*read), TensorRtLlmServer(_launch(resolved), log=log) as server:
        with progress() as show:
            show(f"starting Triton with {name}; its log is {log}", None)
            _wait_until_ready(server, log)
        say(f"Triton serves {name} on {server.host}: gRPC {server.grpc_port}, HTTP {server.http_port}")
        yield server


def _launch(resolved: Resolved) -> Launch:
    serving, topology = resolved.spec.serving, topology_of(resolved)
    try:
        return Launch(
            serving.repository,
            mode=topology.mode,
            ranks=topology.ranks,
            engines=topology.engines,
            hosts=topology.hosts or (hosts_from(os.environ) if topology.mode == "multi_node" else ()),
            python_path=python_path(resolved, os.environ.get("PYTHONPATH", "")),
            http_port=serving.http_port,
            grpc_port=serving.grpc_port,
            metrics_port=serving.metrics_port,
            host=serving.host,
            stop_seconds=serving.stop_seconds,
        )
    except ValueError as error:
        raise SpecError(f"engine.launch: {error}") from None


def _wait_until_ready(server: TensorRtLlmServer, log: Path) -> None:
    """Wait; a failure whose message is known is explained."""
    try:
        server.wait_until_ready(START_SECONDS)
    except TritonError as error:
        known = explain(log.read_text(encoding="utf-8", errors="replace"))
        raise TritonError("\n".join([str(error), *map(str, known)])) from None
