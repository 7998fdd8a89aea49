"""Compiling an engine: done once, done again when something changed, complete or absent."""

import json
import multiprocessing
import shutil
from pathlib import Path

import onnx
import pytest

from build.compile import compile_engine
from build.targets.errors import TargetError
from engine.manifest import EngineError, EngineManifest, load_manifest
from engine.runner import SequenceInput
from tests.runners import openvino_runner
from tests.tiny import TinyTargets


@pytest.fixture
def source(tiny_targets: TinyTargets, tmp_path: Path) -> Path:
    """A copy of a model directory, to be changed."""
    return Path(shutil.copytree(tiny_targets.source("llama"), tmp_path / "source"))


def compiled(source: Path, directory: Path, precision: str = "int8", length: int = 128) -> list[str]:
    """Compile and return what was reported."""
    lines: list[str] = []
    compile_engine(source, directory, precision=precision, max_sequence_length=length, report=lines.append)
    return lines


def up_to_date(lines: list[str]) -> bool:
    return len(lines) == 1 and lines[0].endswith("up to date")


def test_what_is_there_already_is_not_compiled_again(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "engines" / "tiny"
    assert not up_to_date(compiled(source, directory))
    written = (directory / "model.onnx.data").stat().st_mtime_ns
    assert up_to_date(compiled(source, directory))
    assert (directory / "model.onnx.data").stat().st_mtime_ns == written
    moved = Path(shutil.move(source, tmp_path / "moved"))
    assert up_to_date(compiled(moved, directory))


@pytest.mark.parametrize(
    "change", ["weights", "config.json", "generation_config.json", "tokenizer.json", "precision", "length"]
)
def test_whatever_changes_is_compiled_again(change: str, source: Path, tmp_path: Path) -> None:
    directory, settings = tmp_path / "engine", {"precision": "int8", "length": 128}
    compiled(source, directory)
    if change == "weights":
        path = source / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-2] ^= 1
        path.write_bytes(content)
    elif change in settings:
        settings |= {"precision": "fp32"} if change == "precision" else {"length": 64}
    else:
        path = source / change
        content_of = json.loads(path.read_text()) if path.exists() else {"eos_token_id": [2, 7]}
        path.write_text(json.dumps({**content_of, "eos_token_id": [2, 7]}))
    lines = compiled(source, directory, **settings)  # type: ignore[arg-type]
    assert not up_to_date(lines)
    manifest = load_manifest(directory)
    assert (manifest.precision, manifest.max_sequence_length) == (settings["precision"], settings["length"])
    if change.endswith("config.json"):
        assert manifest.end_ids == (2, 7)
    assert up_to_date(compiled(source, directory, **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_damaged_engine_is_compiled_again(name: str, source: Path, tmp_path: Path) -> None:
    """A flipped bit, which its size does not show."""
    compiled(source, tmp_path / "engine")
    path = tmp_path / "engine" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    assert not up_to_date(compiled(source, tmp_path / "engine"))
    assert up_to_date(compiled(source, tmp_path / "engine"))


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError("no"), OSError(28, "disk full")])
def test_an_interrupted_compilation_leaves_nothing(
    interruption: BaseException, existing: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "engines" / "tiny"
    if existing:
        compiled(source, directory)
    before = load_manifest(directory) if existing else None
    save = onnx.save_model

    def save_and_stop(*args: object, **settings: object) -> None:
        save(*args, **settings)  # type: ignore[arg-type]
        raise interruption

    monkeypatch.setattr(onnx, "save_model", save_and_stop)
    with pytest.raises((KeyboardInterrupt, RuntimeError, TargetError)):
        compiled(source, directory, length=64)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == (["tiny"] if existing else [])
    if existing:
        assert load_manifest(directory) == before


def test_a_source_that_cannot_reach_the_length_is_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"max_sequence_length 257 is beyond"):
        compiled(source, tmp_path / "engine", length=257)
    assert not (tmp_path / "engine").exists()


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"config.json is missing"):
        compiled(tmp_path / "nothing", tmp_path / "engine")


def _compile_often(source: Path, directory: Path, length: int) -> None:
    for _ in range(12):
        compiled(source, directory, length=length)


def test_processes_that_compile_into_one_directory_do_not_break_it(source: Path, tmp_path: Path) -> None:
    """Each wants another length, so each always finds the wrong engine there."""
    directory = tmp_path / "engines" / "tiny"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_compile_often, args=(source, directory, 64 + index)) for index in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [path.name for path in (tmp_path / "engines").iterdir()] == ["tiny"]
    manifest: EngineManifest = load_manifest(directory)
    assert manifest.max_sequence_length in (64, 65, 66)
    runner = openvino_runner(directory, num_blocks=2)
    assert runner.forward([SequenceInput([1, 2, 3], 0, [0], is_prompt=True)]).shape == (3, 265)
