"""The engines that `drafthouse peers` measures beside ours run, each in the environment it installs.

Whether an engine's greedy answers with speculation are those without is measured, not required: openvino-genai's prompt
lookup departs from its own plain decoding on a prompt as short as the one here.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from build.targets.architecture import Architecture
from deployments.cache import cache_directory
from deployments.speculation import NoSpeculation
from engine.serving.text import TextCodec
from planner.bench.peers.arms import Arm, PeerModel, llama_cpp_arms, openvino_genai_arms
from planner.bench.peers.environments import REQUIREMENTS, Environment, Unavailable, prepare_environment
from planner.bench.peers.records import PeerPrompt, read_records
from planner.bench.peers.run import run_peers
from planner.bench.peers.summary import summarise
from planner.bench.peers.vllm_arms import VLLM, VllmModel, vllm_arms

pytestmark = [pytest.mark.outside, pytest.mark.model]
TOKENS = 8
ARMS = {"openvino-genai": openvino_genai_arms, "llama.cpp": llama_cpp_arms}


def installed(name: str) -> Environment:
    try:
        return prepare_environment(REQUIREMENTS / f"{name}.txt", cache_directory() / "peers")
    except Unavailable as reason:
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(scope="module")
def prompt(smollm2: Path) -> PeerPrompt:
    return PeerPrompt(
        "1", "count", tuple(TextCodec(smollm2).encode("The cat sat on the mat. " * 7 + "The cat sat"))
    )


@pytest.mark.parametrize("engine", ARMS)
def test_each_way_of_speculating_answers_and_tells_its_steps(
    engine: str, smollm2: Path, prompt: PeerPrompt, tmp_path: Path
) -> None:
    environments = {engine: installed(engine.replace(".", "_").replace("-", "_"))}
    gguf = next(smollm2.glob("*.gguf"), None)
    if gguf is None:
        pytest.skip(f"{smollm2} has no GGUF file")
    model = PeerModel(gguf, gguf, Architecture.from_directory(smollm2).eos_token_ids, 256, threads=2)
    arms = list(ARMS[engine](model))
    started = run_peers(arms, environments, [prompt], tmp_path, max_tokens=TOKENS, rounds=1)
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


@pytest.mark.parametrize("engine", [*ARMS, VLLM])
def test_requests_at_once_are_decoded_side_by_side(
    engine: str, smollm2: Path, prompt: PeerPrompt, tmp_path: Path
) -> None:
    environments = {engine: installed(engine.replace(".", "_").replace("-", "_"))}
    prompts = [replace(prompt, id=str(number), tokens=prompt.tokens[number:]) for number in range(4)]
    arms = plain_and_speculating(engine, smollm2, tmp_path / "scratch", batch=4)
    started = run_peers(arms, environments, prompts, tmp_path, max_tokens=TOKENS, rounds=1, batch=4)
    assert not started.missing
    records = read_records(tmp_path / "records.jsonl")
    assert len(records) == 4 * len(arms) == 8
    for item in records:
        assert len(item.token_seconds) == len(item.tokens) == TOKENS
        assert item.token_seconds[0] == item.first_token_seconds < item.token_seconds[-1] <= item.seconds
    plain = records[:4]
    assert max(item.first_token_seconds for item in plain) < min(item.seconds for item in plain)


def plain_and_speculating(engine: str, smollm2: Path, scratch: Path, batch: int) -> list[Arm]:
    """The first two arms of an engine."""
    end_ids = Architecture.from_directory(smollm2).eos_token_ids
    if engine == VLLM:
        model = VllmModel(smollm2, "float32", end_ids, 256, threads=2, scratch=scratch, batch=batch)
        return list(islice(vllm_arms(model, NoSpeculation()), 2))
    gguf = next(smollm2.glob("*.gguf"), None)
    if gguf is None:
        pytest.skip(f"{smollm2} has no GGUF file")
    return list(islice(ARMS[engine](PeerModel(gguf, gguf, end_ids, 256, threads=2, batch=batch)), 2))
