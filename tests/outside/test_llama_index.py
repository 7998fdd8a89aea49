"""llama-index-llms-nvidia-triton 0.6.0 against the ensemble over gRPC.

The connector sends top_k 1, top_p 0, temperature 1, `random_seed`, `length_penalty`, `repetition_penalty` and
`beam_width` with every request, and stops reading one chunk early: after max_tokens - 1 of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planner.bench.peers.environments import Environment
from planner.bench.peers.processes import run
from tests.end_to_end.deployment import Deployment
from tests.outside.conftest import MAX_SEQUENCE_LENGTH, Answer

pytestmark = pytest.mark.outside
PROMPT = "The capital of France is"
MAX_TOKENS = 24


def test_complete_and_stream_complete(
    smollm2_served: Deployment, llama_index: Environment, greedy_answer: Answer
) -> None:
    script = Path(__file__).with_name("llama_index_calls.py")
    command = [llama_index.python, script, smollm2_served.grpc, PROMPT, str(MAX_TOKENS)]
    report = json.loads(run(command, seconds=120, variables=llama_index.variables()).splitlines()[-1])
    assert report["complete"] == report["streamed"] == "".join(report["deltas"])
    assert greedy_answer(PROMPT, MAX_TOKENS).startswith(report["complete"])
    assert report["complete"].startswith(greedy_answer(PROMPT, MAX_TOKENS - 1))
    assert str(MAX_SEQUENCE_LENGTH) in report["error"]
