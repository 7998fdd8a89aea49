"""`drafthouse loadtest` and `demo`: the sweep over load, and the whole journey."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.common import SpecArgument, console, errors, read_spec, told
from cli.prepare import build_deployment
from cli.serve import running_server
from client import ChatTemplate, DrafthouseClient
from deployments.spec import DeploymentSpec, with_loadtest
from loadtest.progress import Progress
from loadtest.settings import Arm, SweepSettings
from loadtest.sweep import run_sweep
from loadtest.table import result_table

_GREETING = "Explain in two sentences why the sky is blue."


def loadtest(
    spec_path: SpecArgument,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Users, as in 1,2,4, instead of the spec's.")
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Requests of a cell, instead of the spec's.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a request, instead of the spec's.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Alternating rounds, instead of the spec's.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory of the report, instead of the spec's.")
    ] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="What the users speak.")] = "grpc",
    processes: Annotated[int, typer.Option(help="Locust processes to spread the users over.")] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an earlier report aside and measure anew.")
    ] = False,
) -> None:
    """Measure the running server: every load, with speculation off and on, and write the report."""
    with told():
        spec = read_spec(spec_path)
        users = concurrency.split(",") if concurrency else None
        changes = {"prompts": prompts, "concurrency": users, "requests": requests, "max_tokens": max_tokens}
        spec = with_loadtest(spec, {**changes, "rounds": rounds, "report": report})
        _sweep(spec, protocol, processes, fresh=fresh)


def demo(spec_path: SpecArgument) -> None:
    """The whole journey: model, engine, Triton, a request, the load sweep, the report."""
    with told():
        spec = read_spec(spec_path)
        build_deployment(spec)
        with running_server(spec) as server:
            _greet(spec, f"{server.host}:{server.grpc_port}")
            _sweep(spec, "grpc", 1, fresh=True)


def _greet(spec: DeploymentSpec, address: str) -> None:
    prompt = ChatTemplate.from_directory(spec.target.model).render([{"role": "user", "content": _GREETING}])
    console.print(f"[bold]{_GREETING}[/]")
    with DrafthouseClient(address) as client:
        for chunk in client.stream(prompt, max_tokens=64):
            console.print(chunk.text, end="", markup=False, soft_wrap=True)
    console.print()


def _sweep(spec: DeploymentSpec, protocol: Literal["grpc", "http"], processes: int, *, fresh: bool) -> None:
    settings = _settings(spec, protocol, processes)
    directory = spec.loadtest.report
    if fresh:
        _set_aside(directory)
    with Progress(settings, errors) as progress:
        result = run_sweep(settings, directory, progress)
    console.print(result_table(result.report))
    console.print(f"report: {directory / 'report.html'}, {directory / 'report.json'}")
    # The last line is for programs.
    print(result.report.model_dump_json(), flush=True)
    if result.interrupted:
        raise KeyboardInterrupt


def _settings(spec: DeploymentSpec, protocol: Literal["grpc", "http"], processes: int) -> SweepSettings:
    load, serving = spec.loadtest, spec.serving
    port = serving.grpc_port if protocol == "grpc" else serving.http_port
    arms: tuple[Arm, ...] = (Arm(name="none", num_draft_tokens=0),)
    if spec.speculation.method != "none":
        arms += (Arm(name=spec.speculation.method),)
    return SweepSettings(
        host=f"{serving.host}:{port}",
        protocol=protocol,
        metrics_url=f"http://{serving.host}:{serving.metrics_port}/metrics",
        prompts=load.prompts.resolve(),
        chat_template=spec.target.model.resolve(),
        max_tokens=load.max_tokens,
        arms=arms,
        concurrency=load.concurrency,
        request_rates=load.request_rates,
        rounds=load.rounds,
        requests=load.requests,
        processes=processes,
        subject={
            "deployment": spec.name,
            "model": spec.target.model.name,
            "precision": spec.engine.precision,
            "speculator": spec.speculation.method,
            "draft_length": str(spec.speculation.draft_length),
        },
    )


def _set_aside(directory: Path) -> None:
    """Keep an earlier report under the next free number."""
    if directory.exists():
        number = 1
        while (target := directory.with_name(f"{directory.name}.{number}")).exists():
            number += 1
        directory.rename(target)
