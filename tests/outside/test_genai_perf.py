"""genai-perf 0.0.8, which drives perf_analyzer 2.51, against the ensemble over gRPC.

It makes prompts from the target's tokenizer, asks for a fixed number of tokens (`min_length`, `max_tokens`), and
computes its figures from the text that comes back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from planner.bench.peers.environments import Environment
from planner.bench.peers.processes import run
from tests.end_to_end.deployment import Deployment
from tests.outside.conftest import Answer

pytestmark = pytest.mark.outside
CONCURRENCY = 2
REQUESTS = 8
INPUT_TOKENS = 40
OUTPUT_TOKENS = 16


def profile(served: Deployment, genai_perf: tuple[Environment, dict[str, str]], folder: Path) -> Path:
    """Run genai-perf; the directory of its exports."""
    environment, variables = genai_perf
    arguments: list[str | Path] = [
        *("profile", "-m", "ensemble", "--service-kind", "triton", "--backend", "tensorrtllm", "--streaming"),
        *(
            "--url",
            served.grpc,
            "--server-metrics-url",
            f"http://127.0.0.1:{served.server.metrics_port}/metrics",
        ),
        *("--tokenizer", served.target, "--concurrency", str(CONCURRENCY)),
        *("--num-prompts", "4", "--synthetic-input-tokens-mean", str(INPUT_TOKENS)),
        *("--output-tokens-mean", str(OUTPUT_TOKENS), "--output-tokens-mean-deterministic"),
        *("--artifact-dir", folder, "--profile-export-file", "profile.json"),
        *("--", "--request-count", str(REQUESTS), "--warmup-request-count", str(CONCURRENCY)),
    ]
    command = [*environment.program("genai-perf"), *arguments]
    print(run(command, seconds=180, directory=folder, variables=variables))
    return folder


def test_its_figures_and_texts_are_right(
    smollm2_served: Deployment,
    genai_perf: tuple[Environment, dict[str, str]],
    greedy_answer: Answer,
    tmp_path: Path,
) -> None:
    folder = profile(smollm2_served, genai_perf, tmp_path)
    requests = json.loads((folder / "profile.json").read_text())["experiments"][0]["requests"]
    assert len(requests) == REQUESTS
    for request in requests:
        prompt = request["request_inputs"]["text_input"]
        text = "".join(chunk["text_output"] for chunk in request["response_outputs"])
        assert text == greedy_answer(prompt, OUTPUT_TOKENS)
    check_figures(json.loads((folder / "profile_genai_perf.json").read_text()))


def check_figures(figures: dict[str, Any]) -> None:
    """They agree with what was asked for and with each other."""
    average = {
        name: value["avg"] for name, value in figures.items() if isinstance(value, dict) and "avg" in value
    }
    assert average["output_sequence_length"] == OUTPUT_TOKENS
    assert average["input_sequence_length"] == pytest.approx(INPUT_TOKENS, abs=4)
    first, between, whole = (
        average[name] for name in ("time_to_first_token", "inter_token_latency", "request_latency")
    )
    assert 0 < first < whole
    assert whole == pytest.approx(first + between * (OUTPUT_TOKENS - 1), rel=0.01)
    rate = average["request_throughput"]
    assert average["output_token_throughput"] == pytest.approx(rate * OUTPUT_TOKENS, rel=0.01)
    # Little's law; the last requests of the run are not accompanied by others.
    assert rate * whole / 1000 <= CONCURRENCY * 1.01
