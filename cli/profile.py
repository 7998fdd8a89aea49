"""`drafthouse profile`: what speculation accepts on given prompts, and what drafting and verification cost."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cli.common import SpecArgument, console, progress, read_spec, tokenized_prompts, told
from cli.prepare import build_deployment
from loadtest.provenance import collect
from planner.profile.records import RequestRecord
from planner.profile.run import ProfileSettings, run_profile

_RECORDS = Path("runs/profile")


def profile(
    spec_path: SpecArgument,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    count: Annotated[int, typer.Option(help="Prompts to take, balanced over the categories.")] = 240,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer.")] = 128,
    temperatures: Annotated[
        list[float],
        typer.Option("--temperature", help="Profiled on all prompts; can be given several times."),
    ] = [0.0, 1.0],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Alternating rounds of the costs; 0: acceptance only.")] = 5,
) -> None:
    """Measure acceptance by category, position and rank, and the costs of drafting and verification."""
    with told():
        spec = read_spec(spec_path)
        settings = ProfileSettings(max_tokens=max_tokens, temperatures=tuple(temperatures), rounds=rounds)
        build_deployment(spec)
        chosen = tokenized_prompts(spec, prompts or spec.loadtest.prompts, count, max_tokens)
        records: list[RequestRecord] = []
        with progress() as show:
            found = run_profile(
                spec,
                chosen,
                settings,
                records.append,
                lambda line: show(f"profile: {line}", None),
            )
        found["provenance"] = collect()
        _save(spec.name, records, found)
        console.print(_table(found))
        print(json.dumps(found), flush=True)


def _save(name: str, records: list[RequestRecord], found: dict[str, Any]) -> None:
    """Raw records, figures and picture, each written beside its place and renamed."""
    # Matplotlib takes a second to import.
    from planner.profile.plot import plot_profile

    folder = _RECORDS / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
    for file, content in (("records.jsonl", lines), ("profile.json", json.dumps(found, indent=1) + "\n")):
        partial = folder / f".{file}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.rename(folder / file)
    plot_profile(found, folder / ".profile.png.partial")
    (folder / ".profile.png.partial").rename(folder / "profile.png")
    console.print(f"records, figures and picture: {folder}")


def _table(found: dict[str, Any]) -> Table:
    """Acceptance length by category, with its confidence interval."""
    table = Table("prompts", header_style="bold", title="acceptance length (tokens per target step)")
    for temperature in found["acceptance"]:
        table.add_column(f"temperature {temperature}")
    names = sorted({name for figures in found["acceptance"].values() for name in figures["by_category"]})
    for name in ["all", *names]:
        cells = []
        for figures in found["acceptance"].values():
            length = (figures if name == "all" else figures["by_category"][name])["acceptance_length"]
            known = length["low"] is not None
            interval = f"  [{length['low']:.2f}, {length['high']:.2f}]" if known else ""
            cells.append("undefined" if length["value"] is None else f"{length['value']:.2f}{interval}")
        table.add_row(name, *(cell.replace("[", r"\[") for cell in cells))
    return table
