"""vLLM loads speculators as the kit trains them, and both engines accept alike with them, token for token.

Chains of three, float32, greedily: with the same drafts two exact engines need the same steps for the same text. Sums
are added in other orders, so a step may differ where two tokens are nearly as likely. P-EAGLE is not shipped for this
target; its drafter is fitted here to the answers, so that what follows a mask is accepted, too.
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
from speculators.peagle.checkpoint import MASK_HIDDEN, load_checkpoint, save_checkpoint
from tests.outside.fitted import fitted_peagle
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
KNOWING = "peagle that knows the answers"
# At each position of its chains, over all prompts.
ACCEPTED_AT_LEAST = 10
SETTINGS: dict[str, dict[str, Any]] = {
    "eagle3": {"checkpoint": WEIGHTS / "eagle3"},
    "medusa": {"checkpoint": WEIGHTS / "medusa"},
    "mlp_speculator": {"checkpoint": WEIGHTS / "mlp_speculator"},
    "draft_model": {"model": WEIGHTS / "draft_model"},
    IN_ANOTHER_LAYOUT: {},
    KNOWING: {},
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


@pytest.fixture(scope="module")
def knowing(smollm2: Path, prompts: list[PeerPrompt], plain: dict[str, PeerRecord], place: Path) -> Path:
    """A P-EAGLE drafter that was fitted to vLLM's own answers."""
    texts = [(prompt.tokens, plain[prompt.id].tokens) for prompt in prompts]
    return fitted_peagle(smollm2, texts, CHAIN, place / "knowing")


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


def compiled(chain: AnySpeculation, smollm2: Path) -> Arm:
    """Our engine's arm with a chain."""
    engine = {"precision": "fp32", "max_sequence_length": LENGTH}
    spec = DeploymentSpec.model_validate({"name": "both", "target": {"model": smollm2}, "engine": engine})
    spec = spec.model_copy(update={"speculation": chain})
    compile_engine(smollm2, spec.engine_directory, precision="fp32", max_sequence_length=LENGTH)
    compile_speculator(
        chain, spec.speculator_directory, target=smollm2, precision="fp32", max_sequence_length=LENGTH
    )
    (own,) = (arm for arm in embedded_arms(spec, threads=2) if arm.method == chain.method)
    return own


def by_position(records: dict[str, PeerRecord]) -> list[int]:
    """Drafted tokens that were accepted at each position of a chain."""
    counts = [0] * CHAIN
    for record in records.values():
        for position, accepted in enumerate(record.accepted or ()):
            counts[position] += accepted
    return counts


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_drafts_are_accepted_by_both_engines(
    name: str,
    smollm2: Path,
    vllm_model: VllmModel,
    vllm_environment: Environment,
    prompts: list[PeerPrompt],
    plain: dict[str, PeerRecord],
    place: Path,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    method, settings = name, SETTINGS[name]
    if name == IN_ANOTHER_LAYOUT:
        drafter = eagle3_of_the_speculators_library(WEIGHTS / "eagle3", tmp_path / "drafter", smollm2)
        method, settings = "eagle3", {"checkpoint": drafter}
    elif name == KNOWING:
        method, settings = "peagle", {"checkpoint": request.getfixturevalue("knowing")}
    chain = as_chain(SECTION.validate_python({"method": method, **settings}), CHAIN)
    arms = [compiled(chain, smollm2), vllm_model.arm(method, chain)]
    found = asked(arms, {OURS: HERE, VLLM: vllm_environment}, prompts, tmp_path / "records")
    assert {item.tokens for item in found[VLLM].values()} == {item.tokens for item in plain.values()}
    assert {item.tokens for item in found[OURS].values()} == {item.tokens for item in plain.values()}
    for prompt, ours in found[OURS].items():
        theirs = found[VLLM][prompt]
        assert ours.steps is not None and theirs.steps is not None
        assert abs(ours.steps - theirs.steps) <= STEPS_APART.get(method, 1), prompt
    positions = by_position(found[VLLM])
    accepted = sum(positions)
    # Each step of an answer but the first emits what was accepted and one token more.
    emitted = sum(len(item.tokens) for item in plain.values())
    steps = sum(item.steps or 0 for item in found[VLLM].values())
    assert accepted > 0 and abs(emitted - steps - accepted) <= CHAIN * len(prompts)
    assert name != KNOWING or min(positions) >= ACCEPTED_AT_LEAST, positions


def test_a_mask_that_peagle_reads_otherwise_costs_steps(
    smollm2: Path,
    knowing: Path,
    prompts: list[PeerPrompt],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More than engines may be apart: our own with the learned vector, and with none."""
    monkeypatch.chdir(place)
    checkpoint = load_checkpoint(knowing)
    checkpoint.tensors[MASK_HIDDEN].fill(0)
    (tmp_path / "blank").mkdir()
    save_checkpoint(checkpoint, tmp_path / "blank")
    found = []
    for drafter in (knowing, tmp_path / "blank"):
        chain = as_chain(SECTION.validate_python({"method": "peagle", "checkpoint": drafter}), CHAIN)
        records = tmp_path / f"records-{drafter.name}"
        found.append(asked([compiled(chain, smollm2)], {OURS: HERE}, prompts, records)[OURS])
    learned, blank = found
    for prompt in learned:
        assert blank[prompt].tokens == learned[prompt].tokens
        assert (blank[prompt].steps or 0) > (learned[prompt].steps or 0) + 1
    first, *masked = by_position(blank)
    assert first >= by_position(learned)[0]  # which follows no mask
    assert sum(masked) < sum(by_position(learned)[1:]) / 2
