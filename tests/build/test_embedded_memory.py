"""The estimate before building counts what an engine that is opened will hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from build import embedded_memory
from build.compile import compile_engine
from build.targets.architecture import Architecture
from deployments.engines import Precision
from deployments.spec import DeploymentSpec
from engine.native.library import instructions
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.runners import openvino_runner

LENGTH = 128
ROTARY = 2 * LENGTH * 32 * 4  # bytes of cosines and sines


@pytest.mark.skipif(instructions() is None, reason="the kit's kernel does not run here")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("precision", ["int4", "int8", "fp32"])
def test_each_size_of_a_step_copies_what_the_kernel_has_left_to_openvino(
    precision: Precision, vnni: bool, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def buckets(num_bytes: int) -> list[int]:
        asked.append(num_bytes)
        return []

    monkeypatch.setattr("engine.openvino_graphs.buckets_for", buckets)
    monkeypatch.setattr(embedded_memory, "buckets_for", buckets)
    monkeypatch.setattr("engine.linear_layers.has_vnni", lambda: vnni)
    sizes = {"head_dim": 32, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 4096}
    config = tiny_config("llama", **sizes, tie_word_embeddings=tied)
    target = Architecture.from_config(config)
    write_huggingface(tmp_path / "tiny", config, random_weights(target))
    compile_engine(tmp_path / "tiny", tmp_path / "engine", precision=precision, max_sequence_length=LENGTH)
    openvino_runner(tmp_path / "engine", num_blocks=8, threads=1)
    (found,) = asked
    asked.clear()
    spec = DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": str(tmp_path / "tiny")},
            "engine": {"precision": precision, "max_sequence_length": LENGTH},
        }
    )
    list(embedded_memory.memory_findings(spec, target))
    estimate, *_ = asked
    graph = (tmp_path / "engine" / "model.onnx").stat().st_size
    assert found == pytest.approx(estimate, rel=0.03, abs=graph + ROTARY)
    everything = embedded_memory.compiled_bytes(target, precision)
    assert (estimate < everything) == (precision == "int4" or (precision == "int8" and not vnni))
