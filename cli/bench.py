"""`drafthouse bench`: what a step costs, beside the memory bound, the served engine and openvino-genai."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated
from urllib.request import urlopen

import typer
from rich.table import Table

from cli.common import SpecArgument, console, for_programs, progress, read_spec, say, told
from cli.peers import peer_model
from cli.prepare import build_deployment, build_engines
from cli.serve import server_of, watched_server
from client import DrafthouseClient
from deployments.cache import cache_directory
from deployments.errors import DrafthouseError
from deployments.files.writing import write_text
from deployments.spec import DeploymentSpec
from engine.serving.text import TextCodec
from loadtest.provenance import collect
from planner.bench.contexts import ContextCosts, context_table, measure_contexts
from planner.bench.measure import BenchResult, Subject, run_bench
from planner.bench.peers.arms import openvino_genai_arms
from planner.bench.peers.environments import REQUIREMENTS, prepare_environment
from planner.bench.peers.process import PeerProcess
from planner.bench.table import step_table, throughput_table

_PROMPT = "Tell me a long story about a ship and its crew. " * 20
_TOKENS = 96
_RECORDS = Path("runs/bench")


def bench(
    spec_path: SpecArgument,
    rounds: Annotated[int, typer.Option(help="Alternating rounds.")] = 7,
    served: Annotated[bool, typer.Option(help="Measure the engine behind Triton beside it.")] = True,
    peer: Annotated[
        bool, typer.Option(help="Measure openvino-genai beside it, on the target's GGUF file.")
    ] = True,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Measure steps on this many tokens of context instead, by batch and tokens; repeatable.",
        ),
    ] = None,
) -> None:
    """Measure step costs in process, next to the memory bound, Triton and openvino-genai."""
    with told() as stop:
        spec = read_spec(spec_path)
        folder = _RECORDS / spec.name
        stop.kept = f"nothing was measured to the end; {folder} is as it was"
        if served and not context:
            server_of(spec).check_ports()
            build_deployment(spec)
        else:
            build_engines(spec)
        if context:
            costs = _contexts(spec, sorted(set(context)), rounds)
            _tell(folder / "contexts.json", costs.to_json(), context_table(costs))
        else:
            result = _steps(spec, rounds, folder, served=served, peer=peer)
            _tell(folder / "bench.json", result.to_json(), step_table(result), throughput_table(result))


def _steps(spec: DeploymentSpec, rounds: int, folder: Path, *, served: bool, peer: bool) -> BenchResult:
    with ExitStack() as running:
        others: dict[str, Subject] = {}
        if served:
            others |= running.enter_context(_behind_triton(spec))
        if peer:
            others |= _openvino_genai(spec, running, folder)
        with progress() as show:
            show("bench: loading the engine", None)
            return run_bench(
                spec.engine_directory,
                others=others,
                rounds=rounds,
                engine=spec.embedded,
                provenance=collect(),
                report=lambda line, share: show(f"bench: {line}", share),
            )


def _contexts(spec: DeploymentSpec, contexts: Sequence[int], rounds: int) -> ContextCosts:
    with progress() as show:
        show("bench: loading the engine", None)
        return measure_contexts(
            spec.engine_directory,
            contexts=contexts,
            rounds=rounds,
            engine=spec.embedded,
            provenance=collect(),
            report=lambda line, share: show(f"bench: {line}", share),
        )


def _tell(path: Path, document: str, *tables: Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, document + "\n")
    for table in tables:
        console.print(table)
    say(f"raw figures: {path}")
    for_programs(document)


@contextmanager
def _behind_triton(spec: DeploymentSpec) -> Iterator[dict[str, Subject]]:
    with watched_server(spec) as server, DrafthouseClient(f"{server.host}:{server.grpc_port}") as client:
        url = f"http://{server.host}:{server.http_port}/v2/models/ensemble/generate"
        yield {
            "through Triton, one chunk a token, batch 1, tokens/s": lambda: _streamed(client),
            "through Triton, one response, batch 1, tokens/s": lambda: _responded(url),
        }


def _streamed(client: DrafthouseClient) -> float:
    """Tokens a second of one streamed request without speculation, after its first token."""
    stream = client.stream(_PROMPT, max_tokens=_TOKENS, min_tokens=_TOKENS, num_draft_tokens=0)
    stamps = [time.perf_counter() for _ in stream]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])


def _responded(url: str) -> float:
    """The same of requests that are answered as a whole: what more tokens cost than one does."""

    def seconds(tokens: int) -> float:
        request = {"text_input": _PROMPT, "max_tokens": tokens, "min_tokens": tokens, "num_draft_tokens": 0}
        started = time.perf_counter()
        with urlopen(url, json.dumps(request).encode()) as response:
            response.read()
        return time.perf_counter() - started

    return (_TOKENS - 1) / (seconds(_TOKENS) - seconds(1))


def _openvino_genai(spec: DeploymentSpec, running: ExitStack, folder: Path) -> dict[str, Subject]:
    """The other engine, if it can be had; the reason is told if not."""
    try:
        arm = next(openvino_genai_arms(peer_model(spec, None)))
        with progress() as show:
            show("installing openvino-genai into an environment of its own, if it is not there", None)
            environment = prepare_environment(
                REQUIREMENTS / "openvino_genai.txt", cache_directory() / "peers"
            )
            show("loading openvino-genai", None)
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / "openvino-genai.log"
            process = PeerProcess(arm, environment.python, log, environment.variables())
            running.enter_context(process).wait_until_ready()
    except DrafthouseError as error:
        say(f"measured without openvino-genai: {error}")
        return {}
    prompt = list(TextCodec(spec.target.model).encode(_PROMPT))
    return {"openvino-genai, batch 1, tokens/s": lambda: _answered(process, prompt)}


def _answered(process: PeerProcess, prompt: list[int]) -> float:
    """Tokens a second of one answer, after its first token."""
    (answer,) = process.generate([prompt], _TOKENS)
    return (len(answer.tokens) - 1) / (answer.seconds - answer.first_token_seconds)
