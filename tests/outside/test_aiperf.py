"""AIPerf 0.13's template endpoint against Triton's `generate_stream`.

AIPerf has no class for Triton; a template writes the request, and a field name finds the text in each event.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import pytest

from engine.serving.text import TextCodec
from planner.bench.peers.environments import Environment
from planner.bench.peers.processes import run
from tests.end_to_end.deployment import Deployment
from tests.outside.conftest import Answer, Prepare

pytestmark = [
    pytest.mark.outside,
    pytest.mark.skipif(sys.version_info < (3, 11), reason="AIPerf 0.13 needs Python 3.11 or newer"),
]
CONCURRENCY = 2
REQUESTS = 8
INPUT_TOKENS = 20
OUTPUT_TOKENS = 16
TEMPLATE = (
    '{"text_input": {{ text|tojson }}, "max_tokens": {{ max_tokens }}, "min_tokens": {{ max_tokens }}, '
    '"stream": {{ stream|tojson }}}'
)


@pytest.fixture(scope="session")
def aiperf(outside: Prepare) -> Environment:
    return outside("aiperf")


def profile(served: Deployment, environment: Environment, folder: Path) -> Path:
    """Run AIPerf; the directory of its exports."""
    template = folder / "template.json"
    template.write_text(TEMPLATE)
    arguments: list[str | Path] = [
        *("profile", "-m", "ensemble", "--url", f"http://{served.http}", "--streaming"),
        *("--endpoint-type", "template", "--custom-endpoint", "/v2/models/ensemble/generate_stream"),
        *("--extra-inputs", f"payload_template:{template}", "--extra-inputs", "response_field:text_output"),
        *("--tokenizer", served.target, "--isl", str(INPUT_TOKENS), "--osl", str(OUTPUT_TOKENS)),
        *("--concurrency", str(CONCURRENCY), "--request-count", str(REQUESTS), "--random-seed", "1"),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics"),
        *("--export-outputs-json", "--artifact-dir", folder / "artifacts"),
    ]
    # HF_HUB_OFFLINE would make 0.13 refuse a tokenizer's path; so the hub is where nobody listens.
    variables = environment.variables(HF_ENDPOINT="http://127.0.0.1:9")
    print(
        run([*environment.program("aiperf"), *arguments], seconds=240, directory=folder, variables=variables)
    )
    return folder / "artifacts"


def test_its_figures_and_texts_are_right(
    smollm2_served: Deployment, aiperf: Environment, greedy_answer: Answer, tmp_path: Path
) -> None:
    folder = profile(smollm2_served, aiperf, tmp_path)
    sessions = json.loads((folder / "inputs.json").read_text())["data"]
    prompts = {session["session_id"]: session["payloads"][0]["text_input"] for session in sessions}
    outputs = json.loads((folder / "outputs.json").read_text())["data"]
    assert len(outputs) == REQUESTS
    codec = TextCodec(smollm2_served.target)
    check_figures(folder, statistics.mean(len(codec.encode(output["response_text"])) for output in outputs))
    for output in outputs:
        assert output["response_text"] == greedy_answer(prompts[output["conversation_id"]], OUTPUT_TOKENS)


def check_figures(folder: Path, length: float) -> None:
    """They agree with what was asked for and with each other.

    AIPerf counts the tokens of the texts, which can be spelt with fewer than were emitted.

    Args:
        folder: of its exports.
        length: tokens of a text, on average.
    """
    figures = json.loads((folder / "profile_export_aiperf.json").read_text())
    average = {
        name: value["avg"] for name, value in figures.items() if isinstance(value, dict) and "avg" in value
    }
    assert (average["request_count"], average["request_error_rate"]) == (REQUESTS, 0)
    assert figures["is_complete"] and not figures["error_summary"]
    assert average["output_sequence_length"] == pytest.approx(length) == pytest.approx(OUTPUT_TOKENS, abs=1)
    first, between, whole = (
        average[name] for name in ("time_to_first_token", "inter_token_latency", "request_latency")
    )
    assert 0 < first < whole
    assert whole == pytest.approx(first + between * (length - 1), rel=0.02)
    rate = average["request_throughput"]
    assert average["output_token_throughput"] == pytest.approx(rate * length, rel=0.01)
    assert rate * whole / 1000 <= CONCURRENCY * 1.01  # Little's law
