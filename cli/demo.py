"""`drafthouse demo`: the whole journey, with a plan that is made on the way and served beside the others."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.table import Table

from cli.common import SpecArgument, console, progress, read_spec, say, tokenized_prompts, told
from cli.measure import BesideOption, deployments_beside, sweep
from cli.prepare import build_deployment
from cli.serve import server_of, watched_server
from cli.served import serving_loads
from client import ChatTemplate, DrafthouseClient
from deployments.drafting import Speculation
from deployments.errors import DrafthouseError
from deployments.spec import DeploymentSpec, with_speculation
from engine.plan import Plan
from loadtest.schema import Report
from planner.plan.plan import cells_at
from planner.plan.quick import PLAN, planned_loads, quick_plan
from planner.plan.words import answer, named

_GREETING = "Explain in two sentences why the sky is blue."
_FOLDER = Path("runs/demo")
_PROMPTS = 24
_ARM = "plan"


def demo(spec_path: SpecArgument, beside: BesideOption = None) -> None:
    """The whole journey: model, engine, Triton, a request, a plan, the load sweep, the report."""
    with told() as stop, ExitStack() as servers:
        spec = read_spec(spec_path)
        stop.kept = (
            "what was built is kept; the same command measures anew, and sets what it had measured aside"
        )
        others = deployments_beside(spec, beside)
        planned = planned_beside([spec, *others])
        for each in filter(None, (spec, *others, planned)):
            server_of(each).check_ports()
        for each in (spec, *others):
            build_deployment(each)
        for each in (spec, *others):
            server = servers.enter_context(watched_server(each))
            _greet(each, f"{server.host}:{server.grpc_port}")
        made = None if planned is None else _plan([spec, *others])
        if made is not None and planned is not None:
            build_deployment(planned)
            others = [*others, planned]
            servers.enter_context(watched_server(planned))

        def tell(report: Report) -> None:
            if made is not None:
                console.print(curve_table(*made, report))
                say(closing(*made, report))

        sweep(spec, others, "grpc", 1, fresh=True, tell=tell)


def planned_beside(specs: Sequence[DeploymentSpec]) -> DeploymentSpec | None:
    """A deployment that serves the plan of these on ports of its own; None where none can be made."""
    for spec in specs:
        drafts = isinstance(spec.speculation, Speculation) and spec.speculation.drafted_by == "engine"
        if spec.engine.kind != "embedded" or not drafts:
            return None
    first = specs[0]
    name = f"{first.name}-plan"
    port = 1 + max(
        port
        for spec in specs
        for port in (spec.serving.http_port, spec.serving.grpc_port, spec.serving.metrics_port)
    )
    serving = first.serving.model_copy(
        update={
            "http_port": port,
            "grpc_port": port + 1,
            "metrics_port": port + 2,
            "repository": Path(f"runs/model_repo/{name}"),
        }
    )
    planned = with_speculation(first, {"method": "plan", "plan": _FOLDER / first.name / PLAN})
    return planned.model_copy(update={"name": name, "serving": serving})


def _plan(specs: Sequence[DeploymentSpec]) -> tuple[Plan, float] | None:
    """A plan for deployments whose servers run, and its prompts' context; None where there can be none, and told."""
    first, load = specs[0], specs[0].loadtest
    prompts = tokenized_prompts(first, load.prompts_file, _PROMPTS, load.max_tokens)
    users = [count for count in load.concurrency if count <= first.embedded.max_batch_size]
    try:
        serving = serving_loads(first, load.prompts_file, users, max_tokens=load.max_tokens, rounds=1)
        with progress() as show:

            def report(line: str, share: float | None) -> None:
                show(f"plan: {line}", share)

            plan = quick_plan(specs, prompts, _FOLDER / first.name, report, serving)
            return plan, planned_loads(first, prompts)[0].context
    except DrafthouseError as error:
        say(f"no plan: {error}")
        return None


def curve_table(plan: Plan, context: float, report: Report) -> Table:
    """Tokens a second by users at one context: what the plan foretells of its choice, what that and the others gave."""
    arms = [arm.arm for arm in report.arms]
    measured = _measured(report)
    table = Table(header_style="bold", title="tokens a second")
    for heading in ("users", "the plan's choice", "predicted", *(f"{arm}" for arm in arms)):
        table.add_column(heading, justify="left" if "choice" in heading else "right")
    for cell in cells_at(plan, context):
        best = cell.best
        rows = [measured.get((cell.concurrency, arm)) for arm in arms]
        table.add_row(
            str(cell.concurrency),
            named(best.candidate, list(plan.deployments)),
            f"{best.tokens_per_second.value:.0f}",
            *("-" if rate is None else f"{rate:.0f}" for rate in rows),
        )
    return table


def closing(plan: Plan, context: float, report: Report) -> str:
    """The plan's answer for the fewest users at one context, and what became of it."""
    cell = cells_at(plan, context)[0]
    measured = _measured(report)
    found, plain = (measured.get((cell.concurrency, arm)) for arm in (_ARM, report.baseline))
    text = f"The plan for {answer(cell, plan.objective, list(plan.deployments))}"
    if not found or not plain:
        return text
    return f"{text} Measured under load: {found:.0f} tokens/s, {found / plain:.2f} times none."


def _measured(report: Report) -> Mapping[tuple[float, str], float]:
    return {
        (point.level, point.arm): point.output_tokens_per_second
        for point in report.points
        if point.kind == "closed" and point.output_tokens_per_second
    }


def _greet(spec: DeploymentSpec, address: str) -> None:
    prompt = ChatTemplate.from_directory(spec.target.model).render([{"role": "user", "content": _GREETING}])
    console.print(f"[bold]{_GREETING}[/]")
    with DrafthouseClient(address) as client:
        for chunk in client.stream(prompt, max_tokens=64):
            console.print(chunk.text, end="", markup=False, soft_wrap=True)
    console.print()
