"""vLLM loads the shipped speculators unchanged, and both engines accept alike with them, token for token.

Chains of three, float32, greedily: with the same drafts two exact engines need the same steps for the same text. Sums
are added in other orders, so a step may differ where two tokens are nearly as likely.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.targets.architecture import Architecture
from client import ChatTemplate
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation, NoSpeculation
from engine.serving.text import TextCodec
from loadtest import prompts as prompt_files
from planner.bench.peers.arms import OURS, Arm, embedded_arms
from planner.bench.peers.environments import Environment
from planner.bench.peers.records import PeerPrompt, PeerRecord, read_records
from planner.bench.peers.run import run_peers
from planner.bench.peers.vllm_arms import VLLM, VllmModel, as_chain
from tests.speculators.layouts import eagle3_of_the_speculators_library

pytestmark = [pytest.mark.outside, pytest.mark.model]
SECTION: TypeAdapter[AnySpeculation] = TypeAdapter(AnySpeculation)
ROOT = Path(__file__).parents[2]
HERE = Environment(Path(sys.prefix))
WEIGHTS = ROOT / "speculators" / "weights" / "smollm2-135m"
CHAIN, TOKENS, PROMPTS, LENGTH = 3, 40, 3, 512
# vLLM has no draft vocabulary for a draft model, so it drafts from all tokens, ours from those that it was trained in.
STEPS_APART = {"draft_model": 4}
IN_ANOTHER_LAYOUT = "eagle3 of the speculators library"
SHIPPED: dict[str, dict[str, Any]] = {
    "eagle3": {"checkpoint": WEIGHTS / "eagle3"},
    "medusa": {"checkpoint": WEIGHTS / "medusa"},
    "mlp_speculator": {"checkpoint": WEIGHTS / "mlp_speculator"},
    "draft_model": {"model": WEIGHTS / "draft_model"},
    IN_ANOTHER_LAYOUT: {},
    "prompt_lookup": {},
    "anpd": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the engines are compiled; vLLM takes what stands in a path for a method (`eagle3`), so none does."""
    return tmp_path_factory.mktemp("both")


@pytest.fixture(scope="module")
def vllm_model(smollm2: Path, place: Path) -> VllmModel:
    end_ids = Architecture.from_directory(smollm2).eos_token_ids
    return VllmModel(smollm2, "float32", end_ids, LENGTH, threads=2, scratch=place)


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[PeerPrompt]:
    codec, template = TextCodec(smollm2), ChatTemplate.from_directory(smollm2)
    items = prompt_files.select(
        prompt_files.load(ROOT / "loadtest" / "prompts" / "drafthouse.jsonl"), PROMPTS
    )
    texts = {item: template.render([{"role": "user", "content": item.text}]) for item in items}
    return [PeerPrompt(item.id, item.category, tuple(codec.encode(text))) for item, text in texts.items()]


@pytest.fixture(scope="module")
def plain(
    vllm_model: VllmModel, vllm_environment: Environment, prompts: list[PeerPrompt], place: Path
) -> dict[str, PeerRecord]:
    """vLLM's own answers without speculation."""
    return asked([vllm_model.arm("none", NoSpeculation())], {VLLM: vllm_environment}, prompts, place)[VLLM]


def asked(
    arms: list[Arm], environments: dict[str, Environment], prompts: list[PeerPrompt], directory: Path
) -> dict[str, dict[str, PeerRecord]]:
    """Answers by engine and prompt."""
    started = run_peers(arms, environments, prompts, directory, max_tokens=TOKENS, rounds=1)
    assert not started.missing
    found: dict[str, dict[str, PeerRecord]] = {}
    for record in read_records(directory / "records.jsonl"):
        found.setdefault(record.engine, {})[record.prompt] = record
    return found


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_drafts_are_accepted_by_both_engines(
    name: str,
    smollm2: Path,
    vllm_model: VllmModel,
    vllm_environment: Environment,
    prompts: list[PeerPrompt],
    plain: dict[str, PeerRecord],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    method, settings = name, SHIPPED[name]
    if name == IN_ANOTHER_LAYOUT:
        drafter = eagle3_of_the_speculators_library(WEIGHTS / "eagle3", tmp_path / "drafter", smollm2)
        method, settings = "eagle3", {"checkpoint": drafter}
    chain = as_chain(SECTION.validate_python({"method": method, **settings}), CHAIN)
    engine = {"precision": "fp32", "max_sequence_length": LENGTH}
    spec = DeploymentSpec.model_validate({"name": "both", "target": {"model": smollm2}, "engine": engine})
    spec = spec.model_copy(update={"speculation": chain})
    compile_engine(smollm2, spec.engine_directory, precision="fp32", max_sequence_length=LENGTH)
    compile_speculator(
        chain, spec.speculator_directory, target=smollm2, precision="fp32", max_sequence_length=LENGTH
    )
    (own,) = (arm for arm in embedded_arms(spec, threads=2) if arm.method == method)
    arms = [own, vllm_model.arm(method, chain)]
    found = asked(arms, {OURS: HERE, VLLM: vllm_environment}, prompts, tmp_path / "records")
    assert {item.tokens for item in found[VLLM].values()} == {item.tokens for item in plain.values()}
    assert {item.tokens for item in found[OURS].values()} == {item.tokens for item in plain.values()}
    for prompt, ours in found[OURS].items():
        theirs = found[VLLM][prompt]
        assert ours.steps is not None and theirs.steps is not None
        assert abs(ours.steps - theirs.steps) <= STEPS_APART.get(method, 1), prompt
    accepted = sum(sum(item.accepted or ()) for item in found[VLLM].values())
    # Each step of an answer but the first emits what was accepted and one token more.
    emitted = sum(len(item.tokens) for item in plain.values())
    steps = sum(item.steps or 0 for item in found[VLLM].values())
    assert accepted > 0 and abs(emitted - steps - accepted) <= CHAIN * len(prompts)
