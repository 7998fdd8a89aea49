"""An engine directory that is missing, damaged, old or of another kind is refused in words."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.manifest import FORMAT_VERSION, MANIFEST_NAME, EngineError, check_fits, load_manifest
from tests.runners import openvino_runner
from tests.tiny import TinyTargets

Damage = Callable[[Path], object]


@pytest.fixture
def directory(tiny_targets: TinyTargets, tmp_path: Path) -> Path:
    """A copy of an engine, to be spoilt."""
    return Path(shutil.copytree(tiny_targets.engine("llama", "int8"), tmp_path / "engine"))


def cut(name: str, share: float) -> Damage:
    return lambda directory: os.truncate(directory / name, int((directory / name).stat().st_size * share))


def remove(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


def rewrite(**changes: object) -> Damage:
    def change(directory: Path) -> None:
        content = json.loads((directory / MANIFEST_NAME).read_text())
        (directory / MANIFEST_NAME).write_text(json.dumps({**content, **changes}))

    return change


def write(text: str) -> Damage:
    return lambda directory: (directory / MANIFEST_NAME).write_text(text)


def overwrite_beginning(directory: Path) -> None:
    with (directory / "model.onnx").open("r+b") as file:
        file.write(bytes(200))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "holds no compiled engine"),
        (remove(MANIFEST_NAME), r"holds no compiled engine \(engine.json is missing\)"),
        (remove("model.onnx"), "model.onnx is missing"),
        (remove("model.onnx.data"), "model.onnx.data is missing"),
        (cut("model.onnx", 0.9), r"model.onnx is damaged: \d+ bytes instead of \d+"),
        (cut("model.onnx", 0), "model.onnx is damaged: 0 bytes"),
        (cut("model.onnx.data", 0.999), r"model.onnx.data is damaged: \d+ bytes instead of \d+"),
        (overwrite_beginning, "model.onnx is damaged"),
        (cut(MANIFEST_NAME, 0.5), "engine.json is damaged"),
        (write(""), "engine.json is damaged"),
        (write("[]"), "engine.json is damaged"),
        (write("{}"), "engine.json is damaged"),
        (rewrite(vocab_size="many"), "engine.json is damaged"),
        (rewrite(format_version=0), f"has format 0, this release reads {FORMAT_VERSION}"),
        (rewrite(format_version=99, kv_layout="new"), f"has format 99, this release reads {FORMAT_VERSION}"),
    ],
)
def test_what_cannot_be_loaded_is_refused(damage: Damage, message: str, directory: Path) -> None:
    damage(directory)
    with pytest.raises(EngineError, match=message) as caught:
        openvino_runner(directory, num_blocks=4)
    assert "run `drafthouse build`" in str(caught.value)
    assert str(directory) in str(caught.value)


def test_what_does_not_fit_the_spec_is_refused(directory: Path) -> None:
    manifest = load_manifest(directory)
    check_fits(manifest, directory, precision="int8", max_sequence_length=256)
    check_fits(manifest, directory, precision="int8", max_sequence_length=64)
    with pytest.raises(EngineError, match="was compiled in int8, the spec asks for fp32"):
        check_fits(manifest, directory, precision="fp32", max_sequence_length=256)
    with pytest.raises(EngineError, match=re.escape("compiled for 256 tokens, the spec asks for 257")):
        check_fits(manifest, directory, precision="int8", max_sequence_length=257)


def test_the_manifest_says_what_the_engine_is(tiny_targets: TinyTargets) -> None:
    manifest = load_manifest(tiny_targets.engine("mistral window 9", "fp32"))
    architecture = tiny_targets.weights("mistral window 9").architecture
    assert (manifest.family, manifest.precision, manifest.max_sequence_length) == ("mistral", "fp32", 256)
    assert manifest.vocab_size == architecture.vocab_size
    assert manifest.end_ids == architecture.eos_token_ids == (2,)
    assert manifest.sliding_window == 9
    assert set(manifest.versions) == {"openvino", "onnx", "drafthouse"}


def test_serving_imports_no_pytorch() -> None:
    """Drafters and Triton's models included; PyTorch is for training, reference and CUDA."""
    room = Path(__file__).parents[2]
    models = [f"engine.serving.{name}" for name in ("generation", "tokenization", "bls")]

    def imports_pytorch(*modules: str) -> bool:
        code = (
            "import sys; from unittest.mock import MagicMock\n"
            "sys.modules['triton_python_backend_utils'] = MagicMock()\n"
            f"import {', '.join(modules)}; print('torch' in sys.modules)"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], cwd=room, check=True, capture_output=True, text=True
        )
        return ran.stdout == "True\n"

    assert not imports_pytorch("engine.deployment", "engine.openvino_graphs", "build.drafters", *models)
    assert imports_pytorch("engine.torch_graphs")
