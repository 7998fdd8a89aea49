"""`drafthouse bench`: what a step costs, beside the memory bound, a peer, and the served engine."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.common import SpecArgument, console, progress, read_spec, told
from cli.prepare import build_deployment
from cli.serve import running_server
from client import DrafthouseClient
from deployments.spec import DeploymentSpec
from planner.bench.measure import Subject, genai_subject, run_bench
from planner.bench.table import step_table, throughput_table

_PROMPT = "Tell me a long story about a ship and its crew. " * 20
_TOKENS = 96
_RECORDS = Path("runs/bench.json")


def bench(
    spec_path: SpecArgument,
    rounds: Annotated[int, typer.Option(help="Alternating rounds.")] = 7,
    peers: Annotated[
        bool, typer.Option(help="Measure openvino-genai beside it, where it is installed.")
    ] = True,
    served: Annotated[bool, typer.Option(help="Measure the engine behind Triton beside it.")] = True,
) -> None:
    """Measure step costs in process, next to the memory bound, openvino-genai, and Triton."""
    with told():
        spec = read_spec(spec_path)
        build_deployment(spec)
        with _others(spec, peers, served) as others, progress() as show:
            result = run_bench(
                spec.engine_directory,
                others=others,
                rounds=rounds,
                threads=spec.engine.threads,
                report=lambda line: show(f"bench: {line}", None),
            )
        _RECORDS.parent.mkdir(parents=True, exist_ok=True)
        _RECORDS.write_text(result.to_json() + "\n", encoding="utf-8")
        console.print(step_table(result))
        console.print(throughput_table(result))
        console.print(f"raw figures: {_RECORDS}")
        print(result.to_json(), flush=True)


@contextmanager
def _others(spec: DeploymentSpec, peers: bool, served: bool) -> Iterator[dict[str, Subject]]:
    """What is measured beside the engine; the server runs as long as it is needed."""
    others: dict[str, Subject] = {}
    gguf = next(iter(sorted(spec.target.model.glob("*.gguf"))), None)
    if peers and gguf is not None:
        peer = genai_subject(gguf)
        if peer is None:
            console.print("openvino-genai is not installed (make test installs it); measuring without it")
        else:
            others["openvino-genai, batch 1, tokens/s"] = peer
    if not served:
        yield others
        return
    with running_server(spec) as server, DrafthouseClient(f"{server.host}:{server.grpc_port}") as client:
        yield {**others, "through Triton, batch 1, tokens/s": lambda: _served(client)}


def _served(client: DrafthouseClient) -> float:
    """Tokens a second of one streamed request without speculation, after its first token."""
    stream = client.stream(_PROMPT, max_tokens=_TOKENS, min_tokens=_TOKENS, num_draft_tokens=0)
    stamps = [time.perf_counter() for _ in stream]
    return (len(stamps) - 1) / (stamps[-1] - stamps[0])
