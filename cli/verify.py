"""`drafthouse verify`: is the served output the target's own?"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from cli.common import (
    SpecArgument,
    console,
    for_programs,
    progress,
    read_spec,
    say,
    tokenized_prompts,
    told,
    who_is,
)
from client import DrafthouseClient
from deployments.files.writing import write_text
from deployments.spec import DeploymentSpec
from engine.deployment import open_runner
from engine.lossless.served import Output, VerifySettings, summary, verify_served
from engine.runner import BLOCK_SIZE
from loadtest.servers import check, deployment_of, describe

_RECORDS = Path("runs/verify")
_MARKS = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "[yellow]open[/]"}


def verify(
    spec_path: SpecArgument,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts to take, balanced over the categories.")] = 60,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the statistical runs.")] = False,
) -> None:
    """Check the running server: greedy and sampled output with and without speculation, and statistics."""
    with told():
        spec = read_spec(spec_path)
        settings = VerifySettings(max_tokens=max_tokens)
        if quick:
            settings = replace(settings, joint_runs=20_000, control_runs=5_000)
        tokenized = tokenized_prompts(spec, prompts or spec.loadtest.prompts, count, max_tokens)
        address = f"{spec.serving.host}:{spec.serving.grpc_port}"
        check(address, deployment_of(describe(address, "grpc", "ensemble")), who_is(spec))
        chosen = {f"{category}/{name}": tokens for (category, name), tokens in tokenized.items()}
        blocks = 8 * -(-spec.embedded.max_sequence_length // BLOCK_SIZE)
        runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=blocks)
        outputs: list[Output] = []
        checks = []
        end_ids = frozenset(runner.manifest.end_ids)
        with DrafthouseClient(address) as client, progress() as show:
            ask = _Server(client)
            show(f"asking the server, {len(chosen)} prompts", None)
            for found in verify_served(chosen, ask, runner, end_ids, settings, outputs.append):
                checks.append(found)
                console.print(f"{_MARKS[found.passed]}  {found.name}: {found.outcome}", soft_wrap=True)
                if found.details:
                    console.print(found.details, markup=False)
        report = summary(checks)
        _save(spec, outputs, report)
        for_programs(json.dumps(report))
        if not report["passed"]:
            raise SystemExit(1)


class _Server:
    """Asks the token-level model, so that no tokenizer stands between the two outputs."""

    def __init__(self, client: DrafthouseClient) -> None:
        self._client = client

    def __call__(
        self, prompt: tuple[int, ...], *, max_tokens: int, speculate: bool, temperature: float, seed: int
    ) -> Sequence[int]:
        result = self._client.generate_tokens(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            num_draft_tokens=None if speculate else 0,
        )
        return result.tokens or ()


def _save(spec: DeploymentSpec, outputs: list[Output], report: dict[str, object]) -> None:
    """Raw answers and report, each written beside its place and renamed."""
    folder = _RECORDS / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(asdict(output)) + "\n" for output in outputs)
    for name, content in (("outputs.jsonl", lines), ("report.json", json.dumps(report, indent=1) + "\n")):
        write_text(folder / name, content)
    say(f"raw answers and report: {folder}")
