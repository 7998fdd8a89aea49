"""The engines that `drafthouse peers` measures beside ours run, each in the environment it installs.

Whether an engine's greedy answers with speculation are those without is measured, not required: openvino-genai's prompt
lookup departs from its own plain decoding on a prompt as short as the one here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from build.targets.architecture import Architecture
from deployments.cache import cache_directory
from engine.serving.text import TextCodec
from planner.bench.peers.arms import PeerModel, llama_cpp_arms, openvino_genai_arms
from planner.bench.peers.environments import REQUIREMENTS, Environment, Unavailable, prepare_environment
from planner.bench.peers.records import PeerPrompt, read_records
from planner.bench.peers.run import run_peers
from planner.bench.peers.summary import summarise

pytestmark = [pytest.mark.outside, pytest.mark.model]
TOKENS = 8


def installed(name: str) -> Environment:
    try:
        return prepare_environment(REQUIREMENTS / f"{name}.txt", cache_directory() / "peers")
    except Unavailable as reason:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="module")
def prompt(smollm2: Path) -> PeerPrompt:
    return PeerPrompt("1", "count", tuple(TextCodec(smollm2).encode("one two three " * 8)))


@pytest.mark.parametrize("engine", ["openvino-genai", "llama.cpp"])
def test_each_way_of_speculating_answers_and_tells_its_steps(
    engine: str, smollm2: Path, prompt: PeerPrompt, tmp_path: Path
) -> None:
    environments = {engine: installed(engine.replace(".", "_").replace("-", "_"))}
    gguf = next(smollm2.glob("*.gguf"), None)
    if gguf is None:
        pytest.skip(f"{smollm2} has no GGUF file")
    model = PeerModel(gguf, gguf, Architecture.from_directory(smollm2).eos_token_ids, 256, threads=2)
    arms = {"openvino-genai": openvino_genai_arms, "llama.cpp": llama_cpp_arms}[engine](model)
    started = run_peers(list(arms), environments, [prompt], tmp_path, max_tokens=TOKENS, rounds=1)
    assert not started.missing
    records = read_records(tmp_path / "records.jsonl")
    assert len(records) == len(started.running) > 2
    for item in records:
        assert 0 < item.first_token_seconds < item.seconds
        assert 0 < (item.steps or 0) <= len(item.tokens) == TOKENS
    drafted = [item for item in summarise(records) if item.method.startswith("draft model")]
    assert len(drafted) == (2 if engine == "llama.cpp" else 0)
    # The target drafts for itself here, so nearly all is accepted.
    assert all((item.acceptance_length or 0) > 2 for item in drafted)
    assert max(item.acceptance_length or 0 for item in summarise(records)) > 1
