"""`drafthouse profile`: what speculation accepts on given prompts, and what drafting and verification cost."""

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.common import (
    SpecArgument,
    console,
    for_programs,
    progress,
    read_spec,
    refuse_plan,
    say,
    tokenized_prompts,
    told,
)
from cli.prepare import build_deployment, build_engines
from cli.serve import server_of, watched_server
from cli.served import serving_loads
from deployments.files.writing import replace_file, write_json
from deployments.spec import DeploymentSpec, SpecError
from loadtest.provenance import collect
from planner.profile.cost import longest_request
from planner.profile.records import RequestRecord
from planner.profile.run import BATCHES, CONTEXTS, ProfileSettings, run_profile

_RECORDS = Path("runs/profile")
_SERVED_TOKENS, _SERVED_ROUNDS = 64, 2


def profile(
    spec_path: SpecArgument,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts to take, balanced over the categories.")] = 240,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    temperatures: Annotated[
        list[float],
        typer.Option("--temperature", help="Profiled on all prompts; can be given several times."),
    ] = [0.0, 1.0],  # noqa: B006
    rounds: Annotated[
        int, typer.Option(min=0, help="Alternating rounds of the costs; 0: acceptance only.")
    ] = 5,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Costs behind this many tokens, if the deployment takes them; repeatable. By default 32, 512, 2000.",
        ),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Costs of this many requests; repeatable. By default 1, 2, 4, 8, 16."),
    ] = None,
    served: Annotated[
        bool, typer.Option(help="Measure what serving adds to a step, through Triton without drafts.")
    ] = True,
) -> None:
    """Measure acceptance by category, position and rank, and the costs of drafting, verification and serving."""
    with told() as stop:
        spec = read_spec(spec_path)
        refuse_plan(spec, "profile")
        settings = ProfileSettings(
            max_tokens=max_tokens,
            temperatures=tuple(temperatures),
            contexts=tuple(sorted(set(context or CONTEXTS))),
            batches=tuple(sorted(set(batch or BATCHES))),
            rounds=rounds,
        )
        _check_taken(spec, context, batch)
        served = served and rounds > 0
        if served:
            server_of(spec).check_ports()
            build_deployment(spec)
        else:
            build_engines(spec)
        texts = prompts or spec.loadtest.prompts_file
        chosen = tokenized_prompts(spec, texts, count, max_tokens)
        folder = _RECORDS / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        raw = folder / "records.partial.jsonl"
        # First, since it takes minutes and what can go wrong with a server goes wrong here.
        serving = _served(spec, texts, settings) if served else []
        stop.kept = f"what had been answered is kept in {raw}; the same command begins again"
        with progress() as show, raw.open("w", encoding="utf-8") as file:

            def record(item: RequestRecord) -> None:
                file.write(json.dumps(asdict(item)) + "\n")
                file.flush()

            def report(line: str, share: float | None) -> None:
                show(f"profile: {line}", share)

            found = run_profile(spec, chosen, settings, record, report)
        found["serving"] = serving
        raw.rename(folder / "records.jsonl")
        found["provenance"] = collect()
        _save(folder, found)
        console.print(length_table(found["acceptance"]))
        for kind, title in (("verify", "verifying N tokens"), ("draft", "drafting N tokens")):
            for behind in sorted({row["context"] for row in found["cost"].get(kind, [])}):
                rows = [row for row in found["cost"][kind] if row["context"] == behind]
                console.print(cost_table(rows, f"{title}, context {behind},"))
        say(f"records, figures and picture: {folder}")
        for_programs(json.dumps(found))


def _served(spec: DeploymentSpec, prompts: Path, settings: ProfileSettings) -> list[dict[str, Any]]:
    users = [each for each in settings.batches if each <= spec.embedded.max_batch_size]
    tokens = min(settings.max_tokens, _SERVED_TOKENS)
    with watched_server(spec):
        return serving_loads(spec, prompts, users, max_tokens=tokens, rounds=_SERVED_ROUNDS)


def _check_taken(spec: DeploymentSpec, context: list[int] | None, batch: list[int] | None) -> None:
    """Refuse to measure where a deployment takes nothing of what was asked for."""
    engine = spec.embedded
    most = engine.max_sequence_length - longest_request(1, 0)
    if context and min(context) > most:
        raise SpecError(
            f"--context {min(context)} is too long: with engine.max_sequence_length {engine.max_sequence_length} "
            f"costs are measured behind at most {most} tokens"
        )
    if batch and min(batch) > engine.max_batch_size:
        raise SpecError(
            f"--batch {min(batch)} is more than the {engine.max_batch_size} requests that engine.max_batch_size takes"
        )


def _save(folder: Path, found: dict[str, Any]) -> None:
    """Figures and picture."""
    # Matplotlib takes a second to import.
    from planner.profile.plot import plot_profile

    write_json(folder / "profile.json", found, indent=1)
    with replace_file(folder / "profile.png") as path:
        plot_profile(found, path)


def length_table(acceptance: dict[str, Any]) -> Table:
    """Acceptance length by category, with its confidence interval."""
    table = Table("tokens a target step, 95 %", header_style="bold")
    for temperature in acceptance:
        table.add_column(f"temperature {temperature}", justify="right", no_wrap=True)
    names = sorted({name for figures in acceptance.values() for name in figures["by_category"]})
    for name in ["all", *names]:
        cells = []
        for figures in acceptance.values():
            length = (figures if name == "all" else figures["by_category"][name])["acceptance_length"]
            known = length["low"] is not None
            interval = f" ({length['low']:.2f} to {length['high']:.2f})" if known else ""
            cells.append("undefined" if length["value"] is None else f"{length['value']:.2f}{interval}")
        table.add_row(name, *cells)
    return table


def cost_table(rows: list[dict[str, Any]], title: str) -> Table:
    """Medians by batch size and tokens of a request."""
    table = Table("batch", header_style="bold", title=f"ms of {title} for each request")
    counts = sorted({row["tokens"] for row in rows})
    for count in counts:
        table.add_column(str(count), justify="right", no_wrap=True)
    medians = {(row["batch"], row["tokens"]): statistics.median(row["ms"]) for row in rows}
    for batch in sorted({row["batch"] for row in rows}):
        table.add_row(str(batch), *(f"{medians[batch, count]:.2f}" for count in counts))
    return table
