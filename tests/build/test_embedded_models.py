"""`drafthouse build --check` on the embedded engine finds what `build` and `serve` would refuse, all of it at once."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner, Result

from build import embedded_memory
from build.embedded_models import model_findings
from build.targets.architecture import Architecture
from cli.main import app
from deployments.spec import DeploymentSpec
from engine.manifest import load_speculator_manifest
from speculators.draft_model.checkpoint import EMBEDDING, save_draft
from speculators.eagle import checkpoint as eagle
from speculators.eagle.config import EagleConfig
from speculators.formats.checkpoint import Checkpoint
from speculators.formats.tensors import Array, read_tensors
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.ports import free_ports

Content = dict[str, Any]
TARGET = Path("models/tiny")
HEAD = Path("models/head")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a target, and Medusa heads of it."""
    monkeypatch.chdir(tmp_path)
    write_model(TARGET)
    write_medusa(HEAD, 64)


def write_model(directory: Path, **changes: Any) -> None:
    config = tiny_config("llama", **{"head_dim": 32, **changes})
    write_huggingface(directory, config, random_weights(Architecture.from_config(config)))


def write_medusa(directory: Path, width: int) -> None:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(
        json.dumps({"medusa_num_heads": 4, "medusa_num_layers": 1, "base_model_name_or_path": "tiny"})
    )
    tensors = {}
    for head in range(4):
        tensors[f"{head}.0.linear.weight"] = np.zeros((width, width), np.float32)
        tensors[f"{head}.0.linear.bias"] = np.zeros(width, np.float32)
        tensors[f"{head}.1.weight"] = np.zeros((265, width), np.float32)
    save_file(tensors, directory / "medusa_lm_head.safetensors")


def write_eagle(directory: Path, embedding: Callable[[Array], Array]) -> None:
    """A drafter of zeros with an embedding of its own, made of the target's."""
    keys = {"vocab_size": 265, "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256}
    config = EagleConfig.parse({**keys, "num_attention_heads": 2, "num_key_value_heads": 1}, "tiny")
    shapes = eagle.tensor_shapes(config, with_embedding=False)
    tensors: dict[str, Array] = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    theirs = read_tensors(TARGET / "model.safetensors")[f"model.{eagle.EMBEDDING}"]
    directory.mkdir(parents=True)
    eagle.save_checkpoint(
        Checkpoint(config, {**tensors, eagle.EMBEDDING: embedding(theirs.astype(np.float32))}), directory
    )


def content(**sections: Any) -> Content:
    http, grpc, metrics = free_ports(3)
    serving = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
    return {
        "name": "x",
        "target": {"model": str(TARGET)},
        "engine": {"max_sequence_length": 128, "max_batch_size": 2},
        "speculation": {"method": "medusa", "checkpoint": str(HEAD)},
        "serving": serving,
    } | sections


def run(*arguments: str, **sections: Any) -> Result:
    Path("spec.yaml").write_text(yaml.safe_dump(content(**sections)))
    return CliRunner().invoke(app, ["build", *arguments, "spec.yaml"])


def errors_of(**sections: Any) -> list[str]:
    spec = DeploymentSpec.model_validate(content(**sections))
    return [item.name for item in model_findings(spec) if item.severity == "error"]


def break_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_a_tensor() -> None:
    tensors = load_file(TARGET / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, TARGET / "model.safetensors")


def heads_of_another() -> None:
    shutil.rmtree(HEAD)
    write_medusa(HEAD, 32)


def swap_two_tokens() -> None:
    shutil.copytree(TARGET, "models/draft")
    path = Path("models/draft/tokenizer.json")
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(tokenizer))


def distilled_from_another() -> None:
    write_model(Path("models/other"), hidden_size=32)
    tensors = read_tensors(Path("models/other/model.safetensors"), lambda name: name != EMBEDDING)
    Path("models/draft").mkdir()
    config = json.loads(Path("models/other/config.json").read_text())
    save_draft(config, tensors, np.arange(10, 200), Path("models/draft"))


def precious() -> None:
    Path("precious").mkdir()
    Path("precious/thesis.txt").write_text("years of work")


def write_texts(content: str) -> None:
    Path("texts.jsonl").write_text(content)


def files() -> dict[Path, int]:
    """All files but the spec, with the time of their last change."""
    found = [path for path in Path().rglob("*") if path.is_file() and path.name != "spec.yaml"]
    return {path: path.stat().st_mtime_ns for path in found}


def nothing() -> None:
    pass


class Case(NamedTuple):
    name: str
    spoil: Callable[[], object]
    sections: Content
    told: str = ""


DRAFT = {"speculation": {"method": "draft_model", "model": "models/draft"}}
EAGLE = {"speculation": {"method": "eagle", "checkpoint": "models/eagle"}}
TEXTS = {"speculation": {"method": "suffix_automaton", "texts": "texts.jsonl"}}
CASES = [
    Case("model-missing", lambda: shutil.rmtree(TARGET), {}, "models/tiny does not exist"),
    Case(
        "source-unusable",
        lambda: shutil.rmtree(TARGET),
        {"target": {"model": str(TARGET), "source": "no/where.gguf"}},
        "neither a file nor a directory",
    ),
    Case("model-unreadable", (TARGET / "config.json").unlink, {}, "config.json is missing"),
    Case("model-unreadable", lambda: cut(TARGET / "model.safetensors"), {}, "damaged or incomplete"),
    Case("model-unreadable", drop_a_tensor, {}, "missing model.norm.weight"),
    Case("model-unreadable", (TARGET / "tokenizer.json").unlink, {}, "tokenizer.json cannot be read"),
    Case("model-unreadable", lambda: break_json(TARGET / "config.json", vocab_size=100), {}, "config.json"),
    Case("model-unreadable", lambda: break_json(TARGET / "config.json", model_type="mamba"), {}, "mamba"),
    Case("sequence-exceeds-positions", nothing, {"engine": {"max_sequence_length": 512}}, "beyond the 256"),
    Case("model-missing", lambda: shutil.rmtree(HEAD), {}, "models/head does not exist"),
    Case("checkpoint-unusable", lambda: cut(HEAD / "medusa_lm_head.safetensors"), {}, "damaged"),
    Case(
        "checkpoint-unusable",
        heads_of_another,
        {},
        "is of another target",
    ),
    Case(
        "checkpoint-unusable",
        nothing,
        {"speculation": {"method": "medusa", "checkpoint": str(HEAD), "num_heads": 9}},
        "4",
    ),
    Case(
        "checkpoint-unusable",
        nothing,
        {"speculation": {"method": "medusa", "checkpoint": str(HEAD), "choices": [[0, 0]]}},
        "choices",
    ),
    Case("model-missing", nothing, DRAFT, "models/draft does not exist"),
    Case("checkpoint-unusable", swap_two_tokens, DRAFT, "different tokenizers"),
    Case(
        "checkpoint-unusable",
        lambda: write_model(Path("models/draft"), vocab_size=200),
        DRAFT,
        "has 200 tokens",
    ),
    Case(
        "checkpoint-unusable",
        lambda: write_eagle(Path("models/eagle"), lambda theirs: theirs[::-1].copy()),
        EAGLE,
        "embed_tokens.weight is not the target's",
    ),
    Case("checkpoint-unusable", distilled_from_another, DRAFT, "it was cut out of another model"),
    Case(
        "sequence-exceeds-positions",
        lambda: write_model(Path("models/draft"), max_position_embeddings=64),
        DRAFT,
        "beyond the 64 positions of speculation.model",
    ),
    Case("memory", nothing, {"engine": {"max_sequence_length": 256, "max_batch_size": 256}}, "requests"),
    Case(
        "rank-too-great",
        nothing,
        {
            "speculation": {"method": "low_bit", "rank": 65},
            "engine": {"precision": "fp32", "max_sequence_length": 128},
        },
        "speculation.rank: rank 65 is more than the 64 that the target's matrices have",
    ),
    Case(
        "bits-out-of-range",
        nothing,
        {
            "speculation": {"method": "low_bit", "bits_per_weight": 4.6},
            "engine": {"precision": "fp32", "max_sequence_length": 128},
        },
        "speculation.bits_per_weight: bits_per_weight must be from 5.00 (all matrices",
    ),
    Case("texts-unusable", nothing, TEXTS, "speculation.texts: texts.jsonl is no file"),
    Case("texts-unusable", lambda: os.mkfifo("texts.jsonl"), TEXTS, "texts.jsonl is no file"),
    Case("texts-unusable", lambda: write_texts('{"text": 3}'), TEXTS, "texts.jsonl:1: expected an object"),
    Case("texts-unusable", lambda: write_texts('{"text": ""}'), TEXTS, "texts.jsonl holds no texts"),
    Case("disk", nothing, {}, "free, the compiled engine takes"),
    Case("not-the-kit-s-own", precious, {"serving": {"repository": "precious"}}, "holds files and no"),
    Case("not-the-kit-s-own", nothing, {"serving": {"repository": "models"}}, "holds files and no"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}: {case.told}")
def test_what_is_found_is_what_building_refuses(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.spoil()
    if case.name == "memory":
        monkeypatch.setattr(embedded_memory, "machine_bytes", lambda: 2**30)
    if case.name == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    before = files()
    assert errors_of(**case.sections) == [case.name]
    for arguments in (["--check"], []):
        result = run(*arguments, **case.sections)
        assert result.exit_code == 2, result.output
        assert f"error: {case.name}" in result.stderr
        assert case.told in " ".join(result.stderr.split())
    assert files() == before


def test_what_is_good_is_checked_and_built() -> None:
    checked = run("--check")
    assert checked.exit_code == 0 and "nothing speaks against building x" in checked.stdout
    assert "note: memory" in checked.stderr
    assert not Path("runs").exists()
    assert run().exit_code == 0
    assert Path("runs/model_repo/x/ensemble/config.pbtxt").is_file()


@pytest.mark.parametrize(
    ("write", "sections"),
    [
        (lambda: write_model(Path("models/draft"), vocab_size=300), DRAFT),
        (lambda: write_eagle(Path("models/eagle"), lambda theirs: theirs), EAGLE),
        (lambda: write_texts('{"text": "said and written"}'), TEXTS),
    ],
    ids=["a draft model that is padded otherwise", "the target's embedding", "texts of one's own"],
)
def test_a_drafter_that_fits_is_checked_and_built(write: Callable[[], None], sections: Content) -> None:
    write()
    for arguments in (["--check"], []):
        result = run(*arguments, **sections)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(("key", "value"), [("rank", 8), ("bits_per_weight", 6.5)])
def test_a_target_that_drafts_in_four_bits_is_checked_and_built_with_its_copy(key: str, value: float) -> None:
    sections: Content = {
        "speculation": {"method": "low_bit", key: value},
        "engine": {"precision": "fp32", "max_sequence_length": 128},
    }
    checked = run("--check", **sections)
    assert checked.exit_code == 0 and "drafter: about" in checked.stderr, checked.output
    assert run(**sections).exit_code == 0
    (copy,) = Path("runs/engines").glob("tiny-low_bit-int4-*/speculator.json")
    assert load_speculator_manifest(copy.parent).settings[key] == value


@pytest.mark.parametrize(
    "settings", [{}, {"rank": 32}, {"bits_per_weight": 6.5}, {"bits_per_weight": 8.1}], ids=str
)
def test_the_estimate_of_a_copy_is_what_it_takes(settings: Content) -> None:
    shutil.rmtree(TARGET)
    write_model(TARGET, hidden_size=256, intermediate_size=512)
    sections: Content = {
        "speculation": {"method": "low_bit", **settings},
        "engine": {"precision": "fp32", "max_sequence_length": 128},
    }
    assert run(**sections).exit_code == 0
    (weights,) = Path("runs/engines").glob("tiny-low_bit-int4-*/model.onnx.data")
    spec = DeploymentSpec.model_validate(content(**sections))
    estimate = embedded_memory.drafter_bytes(spec, Architecture.from_directory(TARGET))
    rotary = 2 * 128 * 32 * 4  # cosines and sines of 128 positions
    assert weights.stat().st_size - rotary == pytest.approx(estimate, rel=0.03)


def test_all_findings_come_at_once() -> None:
    cut(HEAD / "medusa_lm_head.safetensors")
    precious()
    (TARGET / "tokenizer.json").unlink()
    found = errors_of(serving={"repository": "precious"}, engine={"max_sequence_length": 512})
    assert found == ["model-unreadable", "checkpoint-unusable", "not-the-kit-s-own"]


def test_a_target_that_is_made_first_is_no_error() -> None:
    shutil.rmtree(TARGET)
    cut(HEAD / "medusa_lm_head.safetensors")
    sections = {"target": {"model": str(TARGET), "source": "smollm2-135m"}}
    assert errors_of(**sections) == ["checkpoint-unusable"]
    assert "as far as can be told" in run("--check", **sections, speculation={"method": "anpd"}).stdout


def test_lengths_do_not_undo_each_other() -> None:
    """A server of the one reads its engine while the other is built."""
    places = []
    for name, length in (("short", 64), ("long", 128), ("short", 64)):
        result = run(name=name, engine={"max_sequence_length": length}, speculation={"method": "none"})
        assert result.exit_code == 0, result.output
        engines = [path for path in Path("runs/engines").rglob("*") if path.is_file()]
        places.append({path: path.stat().st_ino for path in engines})
    short, both, again = places
    assert short.items() < both.items() and both == again
    assert sorted(path.name for path in Path("runs/model_repo").iterdir()) == ["long", "short"]


def test_models_of_one_directory_name_do_not_undo_each_other() -> None:
    write_model(Path("elsewhere/tiny"), intermediate_size=64)
    for model in (TARGET, Path("elsewhere/tiny")):
        assert run(target={"model": str(model)}, speculation={"method": "none"}).exit_code == 0
    assert len(list(Path("runs/engines").iterdir())) == 2


@pytest.mark.parametrize("command", ["serve", "bench"])
def test_ports_are_looked_for_before_anything_is_replaced(command: str) -> None:
    """Whoever listens there may be serving that very repository."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        taken = listening.getsockname()[1]
        serving = {**content()["serving"], "grpc_port": taken}
        Path("spec.yaml").write_text(yaml.safe_dump(content(serving=serving)))
        result = CliRunner().invoke(app, [command, "spec.yaml"])
    assert result.exit_code == 2
    assert f"serving.grpc_port {taken} on 127.0.0.1 cannot be used" in " ".join(result.stderr.split())
    assert not list(Path().glob("runs/*/*"))
