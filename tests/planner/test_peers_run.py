"""`drafthouse peers` asks every arm every prompt; what fails is named with its reason."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from build.compile import compile_engine
from build.targets.architecture import Architecture
from deployments.places import target_directory
from deployments.spec import DeploymentSpec
from deployments.speculation import Anpd, AnySpeculation
from engine.vllm.speculation import speculative_config
from planner.bench.peers.arms import OURS, Arm, embedded_arms
from planner.bench.peers.environments import Environment
from planner.bench.peers.process import ANSWER_SECONDS, PeerError, answer_seconds
from planner.bench.peers.protocol import without_end
from planner.bench.peers.records import PeerPrompt, read_records
from planner.bench.peers.run import run_peers
from planner.bench.peers.vllm_arms import as_chain
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface

HERE = Environment(Path(sys.prefix))
PROMPTS = [PeerPrompt("a", "math", (5, 6, 7, 5, 6, 7, 5, 6)), PeerPrompt("b", "qa", (9, 8, 9, 8, 9, 8, 9))]
TOKENS = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a command runs whose deployment has a tiny engine."""
    root = tmp_path_factory.mktemp("peers")
    config = tiny_config("llama", head_dim=32, max_position_embeddings=64)
    source = write_huggingface(root / "tiny", config, random_weights(Architecture.from_config(config)))
    compile_engine(
        source, root / target_directory(source, "int8", 64), precision="int8", max_sequence_length=64
    )
    return root


@pytest.fixture
def arms(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[Arm]:
    monkeypatch.chdir(place)
    return embedded_arms(tiny_spec(), threads=1)


def tiny_spec() -> DeploymentSpec:
    content = {"name": "tiny", "target": {"model": "tiny"}, "engine": {"max_sequence_length": 64}}
    return DeploymentSpec.model_validate({**content, "speculation": {"method": "anpd"}})


def test_each_arm_answers_each_prompt_in_each_round(arms: list[Arm], tmp_path: Path) -> None:
    started = run_peers(arms, {OURS: HERE}, PROMPTS, tmp_path, max_tokens=TOKENS, rounds=2)
    records = read_records(tmp_path / "records.jsonl")
    assert [item.method for item in records] == [
        *("none", "anpd", "anpd", "none"),
        *("anpd", "none", "none", "anpd"),
    ]
    for record in records:
        assert 0 < len(record.tokens) <= TOKENS
        assert 0 < record.first_token_seconds <= record.seconds
        assert record.steps is not None and record.steps <= len(record.tokens)
    for prompt in PROMPTS:
        assert len({item.tokens for item in records if item.prompt == prompt.id}) == 1
    assert all(item.steps == len(item.tokens) for item in records if item.method == "none")
    assert started.versions[OURS]["openvino"] and not started.missing


def test_requests_at_once_are_answered_as_they_are_alone(
    arms: list[Arm], place: Path, tmp_path: Path
) -> None:
    prompts = [PeerPrompt(str(number), "qa", (5, 6, 7 + number) * (number + 3)) for number in range(5)]
    run_peers(arms, {OURS: HERE}, prompts, tmp_path / "alone", max_tokens=TOKENS, rounds=1)
    alone = read_records(tmp_path / "alone" / "records.jsonl")
    together = embedded_arms(tiny_spec(), threads=1, batch=2)
    run_peers(together, {OURS: HERE}, prompts, tmp_path / "batch", max_tokens=TOKENS, rounds=1, batch=2)
    batch = read_records(tmp_path / "batch" / "records.jsonl")
    assert {(item.method, item.prompt, item.tokens) for item in batch} == {
        (item.method, item.prompt, item.tokens) for item in alone
    }
    assert len({item.tokens for item in alone}) > 1
    assert [item.group for item in batch if item.method == "none"] == ["0", "0", "2", "2", ""]
    assert {item.group for item in alone} == {""}
    for item in batch:
        assert len(item.token_seconds) == len(item.tokens)
        assert list(item.token_seconds) == sorted(item.token_seconds)
        assert item.token_seconds[0] == item.first_token_seconds
        assert item.token_seconds[-1] <= item.seconds
    # Side by side: the second has its first token before the first has its last.
    first, second = (item for item in batch if item.method == "none" and item.group == "0")
    assert second.first_token_seconds < first.seconds


def test_answers_are_drawn_with_a_seed_of_each_prompt_and_round(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for all arms, in batches as alone, and again when all is asked again; and not the greedy ones."""

    def asked(name: str, temperature: float, batch: int = 1) -> dict[tuple[str, str, int], tuple[int, ...]]:
        arms = embedded_arms(tiny_spec(), threads=1, batch=batch, temperature=temperature)
        run_peers(arms, {OURS: HERE}, prompts, tmp_path / name, max_tokens=TOKENS, rounds=2, batch=batch)
        records = read_records(tmp_path / name / "records.jsonl")
        return {(item.method, item.prompt, item.round): item.tokens for item in records}

    monkeypatch.chdir(place)
    prompts = [*PROMPTS, replace(PROMPTS[0], id="c")]
    sampled, greedy = asked("sampled", 0.8), asked("greedy", 0.0)
    assert len(sampled) == len(greedy) == 2 * 3 * 2
    for (_, prompt, number), tokens in sampled.items():
        assert tokens == sampled["none", prompt, number]
    assert len({tokens for (_, prompt, _), tokens in sampled.items() if prompt != "b"}) == 4, "seeds differ"
    assert len({tokens for (_, prompt, _), tokens in greedy.items() if prompt != "b"}) == 1
    assert not any(sampled[key] == greedy[key] for key in sampled)
    assert asked("again", 0.8) == sampled == asked("together", 0.8, batch=2)
    assert asked("hotter", 1.2) != sampled


def test_requests_that_an_engine_lets_wait_are_not_side_by_side(arms: list[Arm], tmp_path: Path) -> None:
    """The negative control of the one before: these arms run one request at a time."""
    prompts = [PeerPrompt(str(number), "qa", (5, 6, 7) * (number + 3)) for number in range(2)]
    run_peers(arms[:1], {OURS: HERE}, prompts, tmp_path, max_tokens=TOKENS, rounds=1, batch=2)
    first, second = read_records(tmp_path / "records.jsonl")
    assert first.seconds <= second.first_token_seconds


def test_ours_tells_what_drafting_takes(arms: list[Arm], tmp_path: Path) -> None:
    run_peers(arms, {OURS: HERE}, PROMPTS, tmp_path, max_tokens=TOKENS, rounds=1)
    for item in read_records(tmp_path / "records.jsonl"):
        assert item.draft_tokens is not None and item.draft_seconds is not None
        if item.method == "none":
            assert item.draft_tokens == 0 and item.draft_seconds == 0
        else:
            assert item.draft_tokens >= sum(item.drafted or ()) > 0
            assert 0 < item.draft_seconds < item.seconds - item.first_token_seconds


def test_answers_may_take_longer_the_more_is_read_and_written() -> None:
    prompts = [[0] * 7000] * 8
    assert answer_seconds([[0] * 10], 128) < 2 * ANSWER_SECONDS
    assert answer_seconds(prompts, 128) > 600
    assert answer_seconds(prompts, 256) > answer_seconds(prompts, 128) > answer_seconds(prompts[1:], 128)


def test_ours_tells_how_deep_its_drafts_were_accepted(arms: list[Arm], tmp_path: Path) -> None:
    run_peers(arms, {OURS: HERE}, PROMPTS, tmp_path, max_tokens=TOKENS, rounds=1)
    for item in read_records(tmp_path / "records.jsonl"):
        if item.method == "none":
            assert item.drafted == item.accepted == ()
            continue
        assert item.drafted and item.accepted is not None and item.steps is not None
        assert list(item.drafted) == sorted(item.drafted, reverse=True)
        assert all(few <= many for few, many in zip(item.accepted, item.drafted, strict=False))
        # What the last step accepted is not told.
        assert 0 <= len(item.tokens) - item.steps - sum(item.accepted) <= len(item.drafted)


@pytest.mark.parametrize(
    ("section", "depths"),
    [
        ({"method": "medusa", "checkpoint": "m"}, {"num_heads": 3}),
        ({"method": "eagle", "checkpoint": "e"}, {"depth": 3, "max_draft_tokens": 3}),
        (
            {"method": "eagle3", "checkpoint": "e", "dynamic_tree": {}, "max_concurrency": 2},
            {"draft_length": 3},
        ),
        ({"method": "anpd", "draft_length_schedule": {2: 7}}, {"draft_length": 3}),
    ],
)
def test_chains_are_always_as_long_and_vllm_is_told_so(
    section: dict[str, Any], depths: dict[str, int]
) -> None:
    own = TypeAdapter[AnySpeculation](AnySpeculation).validate_python(section)
    chain = as_chain(own, 3)
    assert type(chain).model_validate(chain.model_dump()) == chain
    assert {key: getattr(chain, key) for key in depths} == depths
    assert getattr(chain, "choices", None) in (None, ((0,), (0, 0), (0, 0, 0)))
    assert chain.longest_draft(5) is None and not getattr(chain, "adaptive", False)
    told = speculative_config(chain, 1)
    assert told is not None and told["num_speculative_tokens"] == 3


def test_an_engine_that_cannot_start_is_left_out_and_ours_is_needed(arms: list[Arm], tmp_path: Path) -> None:
    broken = Arm("other", "none", "planner.bench.peers.engines.embedded", {"spec": {"name": "no target"}})
    environments = {OURS: HERE, "other": HERE}
    started = run_peers([arms[0], broken], environments, PROMPTS[:1], tmp_path, max_tokens=2, rounds=1)
    assert len(read_records(tmp_path / "records.jsonl")) == 1
    assert "other none has ended" in started.missing["other none"]
    assert str(tmp_path / "other-none.log") in started.missing["other none"]
    with pytest.raises(PeerError, match="drafthouse none has ended"):
        run_peers([replace(broken, engine=OURS)], environments, PROMPTS, tmp_path, max_tokens=2, rounds=1)
    with pytest.raises(PeerError, match="nothing could be started: other none has ended"):
        run_peers([broken], environments, PROMPTS, tmp_path, max_tokens=2, rounds=1)


def test_an_engine_that_fails_later_ends_the_run_with_its_reason(arms: list[Arm], tmp_path: Path) -> None:
    long = PeerPrompt("long", "qa", tuple(range(100, 170)))
    with pytest.raises(PeerError, match="70 prompt tokens and max_tokens 12 make 82"):
        run_peers(arms[:1], {OURS: HERE}, [PROMPTS[0], long], tmp_path, max_tokens=TOKENS, rounds=1)
    assert [item.prompt for item in read_records(tmp_path / "records.jsonl")] == ["a"]


def test_arms_of_ours_hold_the_deployments_own_speculation() -> None:
    content = {
        "name": "x",
        "target": {"model": "m"},
        "speculation": {"method": "anpd", "draft_length": 9},
        "engine": {"max_batch_size": 4},
    }
    plain, anpd = embedded_arms(DeploymentSpec.model_validate(content), threads=2, batch=3)
    specs = [
        DeploymentSpec.model_validate(json.loads(json.dumps(arm.settings["spec"]))) for arm in (plain, anpd)
    ]
    assert [spec.speculation.method for spec in specs] == ["none", "anpd"]
    assert specs[1].speculation == Anpd(method="anpd", draft_length=9)
    assert all(spec.embedded.max_batch_size == 3 and spec.embedded.threads == 2 for spec in specs)
    assert not any(spec.embedded.kv_cache_reuse for spec in specs)


def test_tokens_from_the_end_token_on_do_not_count() -> None:
    assert without_end([4, 5, 2, 6], [2]) == [4, 5]
    assert without_end([4, 5], [2]) == [4, 5]
