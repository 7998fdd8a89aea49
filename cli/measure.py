"""`drafthouse loadtest`: the sweep over load."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from cli.common import (
    HostOption,
    SpecArgument,
    console,
    errors,
    for_programs,
    read_spec,
    say,
    told,
    who_is,
)
from deployments.engines import VllmEngine
from deployments.spec import DeploymentSpec, SpecError, with_loadtest
from loadtest.schema import Report
from loadtest.settings import Arm, SweepSettings
from loadtest.sweep import run_sweep
from loadtest.terminal import Progress, result_table

BesideOption = Annotated[
    list[Path] | None,
    typer.Option("--beside", help="Another deployment of the same target, measured in the same run."),
]


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
    cache: Annotated[
        Literal["cold", "warm"] | None,
        typer.Option(
            help="What servers have of a prompt when it comes, in every arm alike: nothing, or all of it, read just "
            "before. Instead of the spec's."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory of the report, instead of the spec's.")
    ] = None,
    protocol: Annotated[Literal["grpc", "http"], typer.Option(help="What the users speak.")] = "grpc",
    processes: Annotated[int, typer.Option(help="Locust processes to spread the users over.")] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Set an earlier report aside and measure anew.")
    ] = False,
    beside: BesideOption = None,
    host: HostOption = None,
) -> None:
    """Measure the running server: every load, with speculation off and on, and write the report."""
    with told() as stop:
        spec = read_spec(spec_path, host)
        users = concurrency.split(",") if concurrency else None
        changes = {"prompts": prompts, "concurrency": users, "requests": requests, "max_tokens": max_tokens}
        spec = with_loadtest(spec, {**changes, "rounds": rounds, "cache": cache, "report": report})
        stop.kept = f"what is finished is kept in {spec.loadtest.report}; the same command measures the rest"
        sweep(spec, deployments_beside(spec, beside, host), protocol, processes, fresh=fresh)


def deployments_beside(
    spec: DeploymentSpec, beside: list[Path] | None, host: str | None = None
) -> list[DeploymentSpec]:
    """The deployments that are measured beside the first.

    Raises:
        SpecError: they could not be compared with it, or not run at the same time.
    """
    found = [read_spec(path, host) for path in beside or ()]
    for place, other in enumerate(found):
        if (other.target.model, other.engine.precision) != (spec.target.model, spec.engine.precision):
            raise SpecError(
                f"{other.name} serves {other.target.model.name} in {other.engine.precision}, {spec.name} "
                f"{spec.target.model.name} in {spec.engine.precision}; what differs has to be the speculation alone"
            )
        for earlier in (spec, *found[:place]):
            if _places(other) & _places(earlier):
                raise SpecError(
                    f"{other.name} and {earlier.name} share a port or the model repository; give one of them others "
                    "under serving, so that both can run at the same time"
                )
    return found


def _places(spec: DeploymentSpec) -> set[object]:
    serving = spec.serving
    return {serving.http_port, serving.grpc_port, serving.metrics_port, serving.repository}


def sweep(
    spec: DeploymentSpec,
    others: Sequence[DeploymentSpec],
    protocol: Literal["grpc", "http"],
    processes: int,
    *,
    fresh: bool,
    tell: Callable[[Report], None] = lambda report: None,
) -> None:
    """Measure running servers, and tell it; `tell` has the last word before what is for programs."""
    settings = sweep_settings(spec, others, protocol, processes)
    directory = spec.loadtest.report
    if fresh:
        _set_aside(directory)
    with Progress(settings, errors) as progress:
        result = run_sweep(settings, directory, progress)
    console.print(result_table(result.report))
    for doubt in result.report.doubts:
        console.print(f"[yellow]doubt[/]: {escape(doubt)}")
    say(f"report: {directory / 'report.html'}, {directory / 'report.json'}")
    tell(result.report)
    for_programs(result.report.model_dump_json())
    if result.interrupted:
        raise KeyboardInterrupt


def sweep_settings(
    spec: DeploymentSpec,
    others: Sequence[DeploymentSpec],
    protocol: Literal["grpc", "http"],
    processes: int,
) -> SweepSettings:
    """What the spec says of its load test, of this deployment and those beside it."""
    load = spec.loadtest
    arms = _own_arms(spec)
    for other in others:
        taken = {arm.name for arm in arms}
        name = other.name if other.speculation.method in taken else other.speculation.method
        arms += (
            Arm(
                name=name,
                host=_address(other, protocol),
                metrics_url=_metrics(other),
                deployment=who_is(other),
            ),
        )
    return SweepSettings(
        host=_address(spec, protocol),
        protocol=protocol,
        metrics_url=_metrics(spec),
        deployment=who_is(spec),
        cache=load.cache,
        prompts=load.prompts_file.resolve(),
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
            **{key: str(value) for key, value in spec.speculation.model_dump(exclude_none=True).items()},
            **{
                f"beside: {other.name}": other.speculation.model_dump_json(exclude_none=True)
                for other in others
            },
        },
    )


def _own_arms(spec: DeploymentSpec) -> tuple[Arm, ...]:
    """Without speculation, and as the deployment speculates: on the same server, where requests can do without.

    Raises:
        SpecError: they cannot, so there is no baseline.
    """
    if spec.speculation.method == "none":
        return (Arm(name="none"),)
    if isinstance(spec.engine, VllmEngine):
        raise SpecError(
            f"{spec.name} cannot be its own baseline: vLLM does not leave speculation out for a single request; "
            "serve a deployment without speculation as well, name it here, and this one with --beside"
        )
    return Arm(name="none", num_draft_tokens=0), Arm(name=spec.speculation.method)


def _address(spec: DeploymentSpec, protocol: Literal["grpc", "http"]) -> str:
    serving = spec.serving
    return f"{serving.host}:{serving.grpc_port if protocol == 'grpc' else serving.http_port}"


def _metrics(spec: DeploymentSpec) -> str:
    return f"http://{spec.serving.host}:{spec.serving.metrics_port}/metrics"


def _set_aside(directory: Path) -> None:
    """Keep an earlier report under the next free number."""
    if directory.exists():
        number = 1
        while (target := directory.with_name(f"{directory.name}.{number}")).exists():
            number += 1
        directory.rename(target)
