"""Four-bit layers with a low-rank correction: what is lost is less, and the graph computes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from build.drafters import compile_speculator
from build.graph.low_rank import Corrected, corrected
from deployments.speculation import LowBit
from engine.attention_kernels import KernelName
from engine.grouped_weights import LINEAR, grouped, ungrouped
from engine.manifest import EngineError, load_speculator_manifest
from engine.openvino_graphs import OpenVinoBackend
from engine.runner import SequenceInput
from engine.target_copy import CompiledCopy
from tests.engine.driving import prompt_of
from tests.tiny import KERNELS, MAX_LENGTH, THREADS, TinyTargets

Matrix = NDArray[np.float32]


def heavy(out: int = 96, inputs: int = 160) -> Matrix:
    """Weights whose columns differ in size, as those of trained models do."""
    random = np.random.default_rng(3)
    sizes = np.exp(0.6 * random.standard_normal(inputs))
    weight: Matrix = (random.standard_normal((out, inputs)) * sizes * 0.03).astype(np.float32)
    return weight


def stands_for(found: Corrected) -> Matrix:
    plain = ungrouped(*found.four_bits)
    return plain if found.left is None or found.right is None else plain + found.left @ found.right


def lost(weight: Matrix, rank: int) -> float:
    return float(np.linalg.norm(weight - stands_for(corrected(weight, rank))) / np.linalg.norm(weight))


def test_the_higher_the_rank_the_less_is_lost() -> None:
    weight = heavy()
    losses = [lost(weight, rank) for rank in (0, 4, 16, 48, 96)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-4, "all of it has full rank"
    found = corrected(weight, 16)
    assert found.left is not None and found.right is not None
    assert (found.left.shape, found.right.shape) == ((96, 16), (16, 160))


@pytest.mark.parametrize("weight", [heavy(), heavy(160, 96)], ids=["wide", "tall"])
def test_taking_turns_loses_less_than_the_best_correction_of_plain_rounding(weight: Matrix) -> None:
    values = np.linalg.svd(weight - ungrouped(*grouped(weight)), compute_uv=False)
    once = float(np.linalg.norm(values[16:]) / np.linalg.norm(weight))
    assert lost(weight, 16) < 0.99 * once < lost(weight, 0)


def test_what_matters_is_what_comes_to_the_output() -> None:
    """Inputs of different sizes: less of the output is lost than where all errors count alike, more of the weights."""
    weight, squares = heavy(), np.exp(2 * np.random.default_rng(5).standard_normal(160))

    def losses(found: Corrected) -> tuple[float, float]:
        error = weight - stands_for(found)
        return float(np.linalg.norm(error * np.sqrt(squares))), float(np.linalg.norm(error))

    weighed, alike = losses(corrected(weight, 16, squares)), losses(corrected(weight, 16))
    assert weighed[0] < 0.8 * alike[0] and weighed[1] > alike[1], (weighed, alike)


def test_inputs_that_never_came_are_no_infinite_weights() -> None:
    squares = np.ones(160)
    squares[:40] = 0
    found = corrected(heavy(), 16, squares)
    assert found.right is not None and np.isfinite(found.right).all()
    error = {
        alike: heavy() - stands_for(each) for alike, each in ((False, found), (True, corrected(heavy(), 16)))
    }
    assert np.linalg.norm(error[False][:, 40:]) < np.linalg.norm(error[True][:, 40:])


def test_without_a_rank_weights_are_rounded_as_in_four_bit_engines() -> None:
    weight = heavy()
    found = corrected(weight, 0)
    assert found.left is None and found.right is None
    for ours, plain in zip(found.four_bits, grouped(weight), strict=True):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_what_four_bits_hold_is_not_corrected(scale: float) -> None:
    weight = ungrouped(*grouped(scale * heavy()))
    assert corrected(weight, 16).left is None


def copy_of(targets: TinyTargets, rank: int, directory: Path, kernel: KernelName) -> CompiledCopy:
    compile_speculator(
        LowBit(method="low_bit", rank=rank),
        directory,
        target=targets.source("llama biases"),
        precision="int4",
        max_sequence_length=MAX_LENGTH,
    )
    runner = targets.runner("llama biases", "fp32", kernel)
    manifest = load_speculator_manifest(directory)
    return CompiledCopy(directory / manifest.graphs[0], manifest, OpenVinoBackend(THREADS), runner)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_corrected_copy_is_closer_to_its_target(
    kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    item = SequenceInput(prompt_of(60), 0, range(2), is_prompt=True)
    expected = tiny_targets.runner("llama biases", "fp32", kernel).forward([item]).copy()
    errors = []
    for rank in (0, 16, 64):
        found = copy_of(tiny_targets, rank, tmp_path / f"rank-{rank}", kernel).forward([item])
        errors.append(float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.5 * errors[0], errors


def test_the_correction_is_kept_in_eight_bits_beside_four(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    copy_of(tiny_targets, 16, tmp_path / "copy", KERNELS[0])
    graph = onnx.load(str(tmp_path / "copy" / "model.onnx"), load_external_data=False).graph
    assert [node.op_type for node in graph.node].count(LINEAR) == 4 * 2
    kinds = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in graph.initializer}
    assert kinds["model.layers.1.mlp.down_proj.right"] == (onnx.TensorProto.INT8, (16, 96))
    assert kinds["model.layers.1.mlp.down_proj.left"] == (onnx.TensorProto.INT8, (64, 16))


def test_another_rank_is_another_copy(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    lines: list[str] = []
    for rank in (8, 16, 16):
        compile_speculator(
            LowBit(method="low_bit", rank=rank),
            tmp_path,
            target=tiny_targets.source("llama"),
            precision="int4",
            max_sequence_length=MAX_LENGTH,
            report=lines.append,
        )
        lines.append("")
    assert [line.endswith("up to date") for line in lines[:-1] if line.startswith(str(tmp_path))] == [True]
    assert load_speculator_manifest(tmp_path).settings["rank"] == 16


def test_a_rank_that_no_matrix_has_is_refused(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="rank 65 is more than the 64 that the target's matrices have"):
        compile_speculator(
            LowBit(method="low_bit", rank=65),
            tmp_path / "copy",
            target=tiny_targets.source("llama"),
            precision="int4",
            max_sequence_length=MAX_LENGTH,
        )
