"""`drafthouse peers`: what cannot be checked is refused before anything is built, and records lie alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from typer.testing import CliRunner

from build.targets.architecture import Architecture
from cli.main import app
from planner.bench.peers.records import read_records
from speculators.draft_model.checkpoint import EMBEDDING, save_draft
from speculators.formats.tensors import read_tensors
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface

DEPLOYMENTS = Path(__file__).parents[2] / "deployments"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("smollm2-token-recycling", "method token_recycling: vLLM 0.32.0 does not have this method"),
        ("smollm2-eagle3-vllm", "is for vLLM (engine.kind); this needs the embedded engine"),
    ],
)
def test_what_cannot_be_checked_is_refused(
    example: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["peers", str(DEPLOYMENTS / f"{example}.yaml"), "--chain", "3"])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_measured_beside_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(*options: str) -> str:
        result = CliRunner().invoke(app, ["peers", str(DEPLOYMENTS / "smollm2-anpd.yaml"), *options])
        assert result.exit_code == 2
        return " ".join(result.output.split())

    windowed = str(DEPLOYMENTS / "smollm2-windowed.yaml")
    assert "engine.max_sequence_length is 8192 and not 2048" in refused("--beside", windowed)
    suffix = str(DEPLOYMENTS / "smollm2-suffix.yaml")
    assert "leave --beside out" in refused("--beside", suffix, "--chain", "3")
    twice = refused("--beside", suffix, "--beside", suffix)
    assert "smollm2-suffix speculates as smollm2-suffix does" in twice
    assert "is a directory; name the YAML file" in refused("--beside", str(DEPLOYMENTS))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A deployment of a small target where the command runs; returns what is to be written as `spec.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRAFTHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(DEPLOYMENTS.parent))
    config = tiny_config("llama", head_dim=32, max_position_embeddings=64)
    target = write_huggingface(Path("tiny"), config, random_weights(Architecture.from_config(config)))
    (target / "tiny.gguf").touch()
    prompt = {"question_id": 1, "category": "qa", "turns": ["Why?"]}
    Path("prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    return {
        "name": "tiny",
        "target": {"model": "tiny"},
        "engine": {"max_sequence_length": 64},
        "speculation": {"method": "anpd"},
        "loadtest": {"prompts": "prompts.jsonl", "max_tokens": 4},
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temperature 0.8", "--temperature 0.8: the other engines are asked greedily; add --no-others"),
        ("--temperature 0.8 --chain 3 --no-others", "--chain checks greedy answers; leave it out, and add"),
        (
            "--temperature -1 --no-others",
            "temperature is -1.0; it must be a finite number, 0 (greedy) or more",
        ),
        ("--temperature nan", "temperature is nan; it must be a finite number, 0 (greedy) or more"),
    ],
)
def test_answers_that_cannot_be_sampled_are_refused(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = str(DEPLOYMENTS / "smollm2-anpd.yaml")
    result = CliRunner().invoke(app, ["peers", spec, *options.split()])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_sampled_answers_are_those_of_plain_decoding_and_the_result_says_how_they_were_drawn(
    tiny: dict[str, Any],
) -> None:
    Path("spec.yaml").write_text(yaml.safe_dump(tiny | {"speculation": {"method": "suffix_automaton"}}))

    def measured(*options: str) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
        result = CliRunner().invoke(app, ["peers", "spec.yaml", "--no-others", *options])
        assert result.exit_code == 0, result.output
        folder = Path("runs/peers/tiny")
        records = read_records(folder / "records.jsonl")
        return json.loads((folder / "result.json").read_text()), [item.tokens for item in records]

    document, sampled = measured("--temperature", "1.5", "--max-tokens", "12")
    assert document["temperature"] == 1.5
    assert [(arm["equal"], arm["compared"]) for arm in document["arms"]] == [(1, 1)] * 3
    assert set(document["arms"][2]["acceptance_by_category"]) == {"qa"}
    document, greedy = measured("--max-tokens", "12")
    assert document["temperature"] == 0
    assert len(set(sampled)) == len(set(greedy)) == 1 and sampled != greedy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--prompts missing.jsonl", "missing.jsonl: cannot read prompts: No such file"),
        ("--prompts empty.jsonl", "empty.jsonl: holds no prompts"),
        ("--prompts broken.jsonl", "broken.jsonl:2: not JSON"),
        ("--prompts long.jsonl", "no prompt of long.jsonl leaves room for 4 tokens"),
        ("--max-tokens 64", "no prompt of prompts.jsonl leaves room for 64 tokens"),
        ("--batch 3 --count 2", "--batch 3 needs as many prompts; --count is 2, and 1 prompts"),
        ("--beside beside.yaml", "speculation.checkpoint: nowhere does not exist"),
        ("--draft missing.gguf", "--draft missing.gguf is not a file"),
        ("--output occupied", "occupied holds something else than the records of a comparison"),
        ("--output prompts.jsonl", "prompts.jsonl is a file; name another directory"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_built(
    options: str, message: str, tiny: dict[str, Any]
) -> None:
    Path("spec.yaml").write_text(yaml.safe_dump(tiny))
    beside = tiny | {"name": "other", "speculation": {"method": "medusa", "checkpoint": "nowhere"}}
    Path("beside.yaml").write_text(yaml.safe_dump(beside))
    Path("empty.jsonl").write_text("\n")
    Path("broken.jsonl").write_text('{"text": "Why?"}\n{"text": "Wh\n')
    Path("long.jsonl").write_text(json.dumps({"text": "Why? " * 100}))
    Path("occupied").mkdir()
    Path("occupied/notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["peers", "spec.yaml", "--no-others", *options.split()])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not Path("runs").exists() and not Path("cache").exists()


def test_a_draft_without_its_embedding_is_completed_elsewhere_than_among_the_records(
    tiny: dict[str, Any],
) -> None:
    config = json.loads(Path("tiny/config.json").read_text())
    tensors = read_tensors(Path("tiny/model.safetensors"), lambda name: name != EMBEDDING)
    Path("draft").mkdir()
    save_draft(config, tensors, np.arange(10, 200), Path("draft"))
    spec = tiny | {"speculation": {"method": "draft_model", "model": "draft"}}
    Path("spec.yaml").write_text(yaml.safe_dump(spec))
    for _ in range(2):
        result = CliRunner().invoke(app, ["peers", "spec.yaml", "--no-others"])
        assert result.exit_code == 0, result.output
    folder = Path("runs/peers/tiny")
    assert {item.method for item in read_records(folder / "records.jsonl")} >= {"none", "draft_model"}
    assert not [path for path in folder.iterdir() if path.is_dir()]
    (whole,) = Path("cache/peers").rglob("model.safetensors")
    assert EMBEDDING in load_file(whole)
