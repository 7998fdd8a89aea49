"""Building and serving deployments on vLLM: its environment, what it says to the deployment, the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from build.vllm.arguments import draft_directory
from build.vllm.checks import asked_of_vllm, vllm_findings
from build.vllm.installed import LOCK, installed_vllm, vllm_place
from build.vllm.repository import assemble_vllm_repository
from cli.common import progress, say
from cli.findings import end_on_errors
from cli.machine import gpus
from cli.serving import serve_in_container, serve_until_ended
from deploy.server import ServerProcess, TritonError
from deploy.triton import TritonServer
from deploy.trtllm_launch import Launch
from deploy.trtllm_server import START_SECONDS, TensorRtLlmServer, tensorrt_llm_triton
from deployments.files.directories import in_use
from deployments.findings import Finding
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from engine.vllm.releases import IMAGE
from engine.vllm.speculators_format import release_findings
from planner.bench.peers.environments import Environment, Unavailable, prepare_environment


def check_vllm(spec: DeploymentSpec) -> None:
    """Tell everything that speaks against the deployment; errors end the command."""
    findings = list(vllm_findings(spec))
    if not any(item.severity == "error" for item in findings):
        found = installed_vllm()
        if found is None:
            what = "vLLM is not installed here, so its own configuration was not asked"
            findings.append(Finding("vllm-not-asked", "note", what))
        else:
            source = drafter_source(spec.speculation)
            if source is not None:
                findings += release_findings(source, spec.speculation.method, found.hands_on)
            with progress() as show:
                show("asking vLLM", None)
                findings += asked_of_vllm(spec, found.environment)
    end_on_errors(findings)


def build_vllm(spec: DeploymentSpec) -> None:
    """Check, and write the model repository; vLLM reads models as they are."""
    check_vllm(spec)
    say(f"build: model repository in {assemble_vllm_repository(spec)}")


def serve_vllm(spec: DeploymentSpec, spec_path: Path, log: Path) -> None:
    """Serve until Ctrl-C with the vLLM of this machine.

    Where there is none, its container is started and this returns if there are GPUs; if not, its CPU build is installed
    in an environment of its own.
    """
    found = installed_vllm()
    if found is None and gpus():
        end_on_errors(list(vllm_findings(spec)))
        serve_in_container(spec_path, "vllm", "vLLM", IMAGE)
        return
    environment = _installed() if found is None else found.environment
    _server(spec, environment, log).check_ports()  # before anything is replaced that is being served
    build_vllm(spec)
    serve_until_ended(lambda: _running(spec, environment, log), spec, log)


@contextmanager
def _running(spec: DeploymentSpec, environment: Environment, log: Path) -> Iterator[ServerProcess]:
    """The server, ready, and what it reads kept from being replaced; stopped at the end."""
    read = spec.serving.repository, draft_directory(spec)
    with in_use(*read), _server(spec, environment, log) as server:
        with progress() as show:
            show(f"starting Triton with {spec.name}; its log is {log}", None)
            server.wait_until_ready(START_SECONDS)
        say(f"Triton serves {spec.name} on {server.host}: gRPC {server.grpc_port}, HTTP {server.http_port}")
        yield server


def _server(spec: DeploymentSpec, environment: Environment, log: Path) -> ServerProcess:
    """NVIDIA's tritonserver where it is installed, as in its image with vLLM; else that of the wheel."""
    serving = spec.serving
    names = ("host", "http_port", "grpc_port", "metrics_port", "stop_seconds")
    places = {name: getattr(serving, name) for name in names}
    program = tensorrt_llm_triton()
    if program is not None:
        return TensorRtLlmServer(Launch(serving.repository, program=program, **places), log=log)
    return TritonServer(serving.repository, log=log, environment=environment.directory, **places)


def _installed() -> Environment:
    with progress() as show:
        show("installing vLLM's CPU build in an environment of its own", None)
        try:
            return prepare_environment(LOCK, vllm_place())
        except Unavailable as error:
            raise TritonError(f"vLLM is not installed here, and: {error}") from None
