"""`drafthouse verify`: is the served output the target's own?"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.common import (
    SpecArgument,
    console,
    for_programs,
    progress,
    read_spec,
    say,
    text_prompts,
    tokenized_prompts,
    told,
    who_is,
)
from client import DrafthouseClient
from deployments.engines import EmbeddedEngine
from deployments.errors import DrafthouseError
from deployments.files.writing import write_text
from deployments.spec import DeploymentSpec, SpecError
from engine.deployment import open_runner
from engine.lossless.served import Check, Output, VerifySettings, summary, verify_served
from engine.lossless.two_servers import Answer, Ask, TwoServerSettings, verify_two_servers
from engine.runner import BLOCK_SIZE
from loadtest.servers import check, deployment_of, describe

_RECORDS = Path("runs/verify")
_ENGINES = {"vllm": "vLLM", "tensorrt_llm": "TensorRT-LLM"}
_MARKS = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "[yellow]open[/]"}


def verify(
    spec_path: SpecArgument,
    prompts: Annotated[Path | None, typer.Option(help="JSONL of prompts, instead of the spec's.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Prompts to take, balanced over the categories.")] = 60,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="A tenth of the statistical runs.")] = False,
    plain: Annotated[
        Path | None,
        typer.Option(
            metavar="SPEC",
            help="The same without speculation, served as well: on vLLM and TensorRT-LLM.",
        ),
    ] = None,
) -> None:
    """Check the running server: greedy and sampled output with and without speculation, and statistics."""
    with told():
        spec = read_spec(spec_path)
        if plain is not None:
            _verify_beside(
                spec, read_spec(plain), prompts or spec.loadtest.prompts_file, count, max_tokens, quick=quick
            )
            return
        if not isinstance(spec.engine, EmbeddedEngine):
            raise SpecError(
                f"{spec.name}: on {_ENGINES[spec.engine.kind]} verify compares two servers; serve the same deployment "
                "without speculation as well, and name it with --plain"
            )
        settings = VerifySettings(max_tokens=max_tokens)
        if quick:
            settings = replace(settings, joint_runs=20_000, control_runs=5_000)
        tokenized = tokenized_prompts(spec, prompts or spec.loadtest.prompts_file, count, max_tokens)
        address = f"{spec.serving.host}:{spec.serving.grpc_port}"
        check(address, deployment_of(describe(address, "grpc", "ensemble")), who_is(spec))
        chosen = {f"{category}/{name}": tokens for (category, name), tokens in tokenized.items()}
        blocks = 8 * -(-spec.embedded.max_sequence_length // BLOCK_SIZE)
        runner = open_runner(spec.embedded, spec.engine_directory, num_blocks=blocks)
        outputs: list[Output] = []
        end_ids = frozenset(runner.manifest.end_ids)
        with DrafthouseClient(address) as client, progress() as show:
            show(f"asking the server, {len(chosen)} prompts", None)
            checks = verify_served(chosen, _Server(client), runner, end_ids, settings, outputs.append)
            report = _told(checks)
        _end(spec, outputs, report)


def _verify_beside(
    spec: DeploymentSpec, plain: DeploymentSpec, prompts: Path, count: int, max_tokens: int, *, quick: bool
) -> None:
    """Check a server against another one without speculation."""
    if plain.speculation.method != "none":
        raise SpecError(f"--plain: {plain.name} speculates ({plain.speculation.method}); it must not")
    if plain.target.model != spec.target.model or plain.engine.kind != spec.engine.kind:
        raise SpecError(f"--plain: {plain.name} has another target or another engine than {spec.name}")
    settings = TwoServerSettings(max_tokens=max_tokens)
    if quick:
        settings = replace(settings, draws=settings.draws // 4)
    addresses = [f"{each.serving.host}:{each.serving.grpc_port}" for each in (plain, spec)]
    for address, each in zip(addresses, (plain, spec), strict=True):
        check(address, deployment_of(describe(address, "grpc", "ensemble")), who_is(each))
    chosen = text_prompts(spec, prompts, count, max_tokens)
    outputs: list[Output] = []
    with (
        DrafthouseClient(addresses[0]) as without,
        DrafthouseClient(addresses[1]) as drafting,
        progress() as show,
    ):
        show(f"asking both servers, {len(chosen)} prompts", None)
        checks = verify_two_servers(chosen, _asks(without), _asks(drafting), settings, outputs.append)
        report = _told(checks)
    _end(spec, outputs, report)


def _told(checks: Iterable[Check]) -> dict[str, Any]:
    """The report on all checks, each of which is told as soon as it is there."""
    made = []
    for found in checks:
        made.append(found)
        console.print(f"{_MARKS[found.passed]}  {found.name}: {found.outcome}", soft_wrap=True)
        if found.details:
            console.print(found.details, markup=False)
    return summary(made)


def _end(spec: DeploymentSpec, outputs: list[Output], report: dict[str, Any]) -> None:
    _save(spec, outputs, report)
    for_programs(json.dumps(report))
    if not report["passed"]:
        raise SystemExit(1)


def _asks(client: DrafthouseClient) -> Ask:
    """Asks a server for text; its answers come with their tokens and log-probabilities."""

    def ask(prompt: str, *, max_tokens: int, temperature: float, seed: int) -> Answer:
        result = client.generate(
            prompt, max_tokens=max_tokens, temperature=temperature, seed=seed, return_log_probs=True
        )
        tokens, log_probs = result.tokens or (), result.log_probs or ()
        if len(tokens) != len(log_probs) or (result.text and not tokens):
            raise VerifyError(
                "the server does not give tokens and a log-probability for each, which verify goes by"
            )
        return Answer(tokens, log_probs)

    return ask


class VerifyError(DrafthouseError):
    """A server's answers cannot be compared."""


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
