"""`drafthouse serve` and `generate`: a running server and a request to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.common import HostOption, SpecArgument, console, errors, progress, read_spec, say, told
from cli.prepare import build_deployment, fetch_target
from cli.serving import serve_until_ended
from cli.trtllm import serve_trtllm
from cli.vllm import serve_vllm
from client import ChatTemplate, DrafthouseClient, GenerationResult, SamplingOptions
from deploy.server import ServerDied, TritonError
from deploy.triton import TritonServer
from deploy.watch import watched
from deployments.engines import EmbeddedEngine, VllmEngine
from deployments.files.directories import in_use
from deployments.spec import DeploymentSpec
from engine.planned import speculator_directories

_LOGS = Path("runs")


def serve(spec_path: SpecArgument, host: HostOption = None) -> None:
    """Build what is missing, start Triton, and serve until Ctrl-C."""
    with told() as stop:
        spec = read_spec(spec_path, host)
        stop.kept = "the server has ended; what was built is kept"
        if isinstance(spec.engine, VllmEngine):
            fetch_target(spec)
            serve_vllm(spec, spec_path, _log(spec))
            return
        if not isinstance(spec.engine, EmbeddedEngine):
            serve_trtllm(spec, spec_path, _log(spec))
            return
        server_of(spec).check_ports()  # before anything is replaced that whoever listens there may be serving
        build_deployment(spec)
        serve_until_ended(lambda: _serving(spec, spec_path), spec, _log(spec))


def generate(
    spec_path: SpecArgument,
    prompt: Annotated[str, typer.Argument(help="Text to continue, or with --chat the user's message.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Wrap the prompt in the model's chat template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to generate.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample among the likeliest tokens up to this mass.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of a sampled request.")] = None,
    draft_tokens: Annotated[
        int | None, typer.Option(help="Most draft tokens a step; 0: no speculation.")
    ] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="How to talk to the server.")] = "grpc",
) -> None:
    """Stream one request from the running server."""
    with told() as stop:
        stop.kept = "the request has been cancelled"
        spec = read_spec(spec_path)
        options: SamplingOptions = {"max_tokens": max_tokens, "temperature": temperature, "top_k": top_k}
        options |= {"top_p": top_p, "seed": seed, "num_draft_tokens": draft_tokens}
        text = (
            ChatTemplate.from_directory(spec.target.model).render([{"role": "user", "content": prompt}])
            if chat
            else prompt
        )
        port = spec.serving.grpc_port if protocol == "grpc" else spec.serving.http_port
        with DrafthouseClient(f"{spec.serving.host}:{port}", protocol=protocol) as client:
            stream = client.stream(text, **options)
            for chunk in stream:
                console.print(chunk.text, end="", markup=False, soft_wrap=True)
            console.print()
        result = stream.result
        errors.print(f"[dim]{', '.join(_about(result))}[/]")


def _about(result: GenerationResult) -> list[str]:
    """How a generation went; of what was not counted, or is undefined, nothing."""
    about = [f"finished: {result.finish_reason}"]
    if result.num_output_tokens is not None:
        about.insert(0, f"{result.num_output_tokens} tokens")
    acceptance = result.acceptance
    if acceptance is None:
        return about
    if acceptance.length is not None:
        about.append(f"acceptance length {acceptance.length:.2f}")
    return [*about, "nothing drafted" if acceptance.rate is None else f"rate {acceptance.rate:.2f}"]


@contextmanager
def _serving(spec: DeploymentSpec, spec_path: Path) -> Iterator[TritonServer]:
    with running_server(spec) as server:
        say(f"serving {spec.name}: stop with Ctrl-C")
        say(f'try: drafthouse generate {spec_path} "Why is the sky blue?" --chat')
        yield server


@contextmanager
def running_server(spec: DeploymentSpec) -> Iterator[TritonServer]:
    """Triton on the deployment's repository, ready; stopped at the end."""
    server, serving = server_of(spec), spec.serving
    with in_use(serving.repository, spec.engine_directory, *speculator_directories(spec).values()), server:
        with progress() as show:
            show(f"starting Triton with {spec.name}", None)
            server.wait_until_ready()
        ports = f"gRPC {serving.grpc_port}, HTTP {serving.http_port}, metrics {serving.metrics_port}"
        say(f"Triton is ready on {serving.host}: {ports}")
        yield server


def server_of(spec: DeploymentSpec) -> TritonServer:
    """The deployment's server, not yet started."""
    serving = spec.serving
    return TritonServer(
        serving.repository,
        http_port=serving.http_port,
        grpc_port=serving.grpc_port,
        metrics_port=serving.metrics_port,
        host=serving.host,
        log=_log(spec),
        stop_seconds=serving.stop_seconds,
    )


@contextmanager
def watched_server(spec: DeploymentSpec) -> Iterator[TritonServer]:
    """The same for commands that do something with it; when it dies, they end with a line that says so."""
    with running_server(spec) as server:
        try:
            with watched(server, spec.serving.silence_seconds):
                yield server
        except ServerDied as death:
            server.kill()
            raise TritonError(f"the server has died: {death}; its log is {server.log}") from None


def _log(spec: DeploymentSpec) -> Path:
    """Where the output of the deployment's server goes."""
    _LOGS.mkdir(parents=True, exist_ok=True)
    return _LOGS / f"triton-{spec.name}.log"
