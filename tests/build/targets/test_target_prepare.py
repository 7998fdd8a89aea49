"""A target directory is complete or absent, reused for the same source, and replaces nothing else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from build.targets.errors import TargetError
from build.targets.files import require_space, writing_errors
from build.targets.prepare import PROVENANCE_FILE, prepare_target
from build.targets.weights import load_weights
from deployments.files.directories import INVENTORY, replace_directory
from deployments.files.hashes import file_sha256
from tests.build.targets.tiny_models import tiny_gguf


def test_a_gguf_file_becomes_a_complete_directory(tmp_path: Path) -> None:
    path, weights = tiny_gguf(tmp_path / "tiny.gguf")
    summary = prepare_target(str(path), tmp_path / "models" / "target")
    assert not summary.reused
    assert summary.source_sha256 == file_sha256(path)
    assert summary.gguf is not None
    assert summary.gguf.stat().st_ino == path.stat().st_ino
    assert {file.name for file in summary.directory.iterdir()} == {
        "config.json",
        "drafthouse_target.json",
        ".drafthouse-files",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tiny.gguf",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    loaded = load_weights(summary.directory)
    for name, values in weights.items():
        np.testing.assert_array_equal(loaded[name], values)


def test_provenance_names_source_versions_and_every_file(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    target = prepare_target(str(path), tmp_path / "target").directory
    provenance = json.loads((target / PROVENANCE_FILE).read_text())
    assert provenance["source"] == str(path)
    assert provenance["source_kind"] == "gguf"
    assert provenance["source_sha256"] == file_sha256(path)
    assert set(provenance["versions"]) == {"python", "gguf", "numpy", "safetensors", "tokenizers"}
    others = [file for file in target.iterdir() if file.name not in (PROVENANCE_FILE, INVENTORY)]
    assert provenance["files"] == {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)} for file in others
    }


def test_the_directory_is_as_readable_as_any_other(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "plain").mkdir()
    target = prepare_target(str(path), tmp_path / "target").directory
    assert target.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_source_is_reused_without_being_written_again(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    first = prepare_target(str(path), tmp_path / "target")
    before = (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns
    messages: list[str] = []
    second = prepare_target(str(path), tmp_path / "target", lambda message, share: messages.append(message))
    assert second.reused
    assert (second.architecture, second.source_sha256) == (first.architecture, first.source_sha256)
    assert (tmp_path / "target" / "model.safetensors").stat().st_mtime_ns == before
    assert any("reusing" in message for message in messages)


def test_an_incomplete_target_is_made_again(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    prepare_target(str(path), tmp_path / "target")
    weights = tmp_path / "target" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert not prepare_target(str(path), tmp_path / "target").reused
    assert len(load_weights(tmp_path / "target")) > 0


def test_a_target_of_another_source_is_left_alone(tmp_path: Path) -> None:
    first, _ = tiny_gguf(tmp_path / "first.gguf")
    second, _ = tiny_gguf(tmp_path / "second.gguf", "qwen3")
    prepare_target(str(first), tmp_path / "target")
    with pytest.raises(TargetError, match=r"made from .*first\.gguf, not from .*second\.gguf"):
        prepare_target(str(second), tmp_path / "target")
    assert prepare_target(str(first), tmp_path / "target").reused


def test_a_source_that_changed_is_noticed(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    prepare_target(str(path), tmp_path / "target")
    path.unlink()
    tiny_gguf(path, rope_theta=500.0)
    with pytest.raises(TargetError, match=r"made from .*tiny\.gguf, not from what it holds now"):
        prepare_target(str(path), tmp_path / "target")


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_is_not_a_target_is_left_alone(kind: str, tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    place = tmp_path / "target"
    if kind == "directory":
        place.mkdir()
        (place / "thesis.txt").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(TargetError, match="exists and is not a target"):
        prepare_target(str(path), place)
    assert place.exists()


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "target").mkdir()
    assert not prepare_target(str(path), tmp_path / "target").reused


@pytest.mark.parametrize("existing", [False, True])
def test_an_interruption_leaves_nothing_half_written(existing: bool, tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    if existing:
        prepare_target(str(path), tmp_path / "target")
        (tmp_path / "target" / "config.json").write_text("damaged")

    def interrupt(message: str, share: float | None) -> None:
        if "writing" in message and share is not None and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_target(str(path), tmp_path / "target", interrupt)
    assert sorted(file.name for file in tmp_path.iterdir()) == (["target"] if existing else []) + [
        "tiny.gguf"
    ]
    if existing:
        assert (tmp_path / "target" / "config.json").read_text() == "damaged"
    assert not prepare_target(str(path), tmp_path / "target").reused


def test_a_full_disk_is_named_before_and_during_writing(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"MB free, but about \d+ MB are needed"):
        require_space(tmp_path, 10**18)
    with (
        pytest.raises(TargetError, match="the disk is full"),
        writing_errors(tmp_path),
        replace_directory(tmp_path / "target", PROVENANCE_FILE) as partial,
    ):
        (partial / "some").write_text("content")
        Path("/dev/full").write_bytes(b"more")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(TargetError, match="cannot be written"):
        prepare_target(str(path), tmp_path / "locked" / "target")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "nowhere",
            "neither a file nor a directory.*smollm2-135m, gemma3-270m; a GGUF file; a local Hugging Face directory",
        ),
        ("HuggingFaceTB/SmolLM2-360M", "hf download HuggingFaceTB/SmolLM2-360M --local-dir SmolLM2-360M"),
        ("./models/missing.gguf", "neither a file nor a directory"),
    ],
)
def test_a_source_that_is_not_there_is_named(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message):
        prepare_target(source, tmp_path / "target")


def test_a_file_that_is_not_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07onnx")
    with pytest.raises(TargetError, match=r"model\.onnx is not a GGUF file"):
        prepare_target(str(tmp_path / "model.onnx"), tmp_path / "target")
