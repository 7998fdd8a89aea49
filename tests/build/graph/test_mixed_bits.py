"""Matrices in eight bits among those in four: which they are, what they cost, and what a copy gains."""

from __future__ import annotations

import errno
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import numpy_helper

from build.compile import compile_engine
from build.drafters import compile_speculator
from build.graph.decoder import Weights
from build.graph.mixed_bits import LayerBits, in_eight_bits, knapsack, matrix_shapes
from build.graph.target import build_target_graph
from build.input_squares import calibration_texts, input_squares
from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from deployments.speculation import LowBit
from engine.attention_kernels import KernelName
from engine.grouped_weights import GROUP, LINEAR, grouped, quantize_rows, ungrouped
from engine.manifest import EngineError, load_speculator_manifest
from engine.openvino_graphs import OpenVinoBackend
from engine.request import GenerationRequest
from engine.runner import SequenceInput
from engine.target_copy import CompiledCopy
from speculators.low_bit import LowBitSpeculator
from tests.engine.driving import generate, make_engine, prompt_of, run
from tests.tiny import KERNELS, MAX_LENGTH, THREADS, VARIANTS, TinyTargets

VARIANT = "llama biases"


def compiled(targets: TinyTargets, directory: Path, bits_per_weight: float | None) -> str:
    """Compile a copy; the last line that was reported."""
    lines: list[str] = []
    compile_speculator(
        LowBit(method="low_bit", bits_per_weight=bits_per_weight),
        directory,
        target=targets.source(VARIANT),
        precision="int4",
        max_sequence_length=MAX_LENGTH,
        report=lines.append,
    )
    return lines[-1]


def stored(directory: Path) -> dict[str, NDArray[np.generic]]:
    """What a compiled graph holds, by name."""
    graph = onnx.load(str(directory / "model.onnx")).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def weight_of(weights: Weights, name: str) -> NDArray[np.float32]:
    return np.concatenate([weights[f"{part}.weight"] for part in name.split("+")])


def lost(weights: Weights, squares: Mapping[str, NDArray[np.float64]], in_eight: Sequence[str]) -> float:
    """What the outputs of all layers lose, squared."""
    total = 0.0
    for name in matrix_shapes(weights.architecture):  # type: ignore[attr-defined]
        weight = weight_of(weights, name)
        values, scale = quantize_rows(weight)
        rounded = values * scale[:, None] if name in in_eight else ungrouped(*grouped(weight))
        total += float((np.square(weight - rounded) * squares[name]).sum())
    return total


def alike_of(architecture: Architecture) -> dict[str, NDArray[np.float64]]:
    """Squares of inputs that are all as large."""
    return {name: np.ones(inputs) for name, (_, inputs) in matrix_shapes(architecture).items()}


def bits_of(shapes: dict[str, tuple[int, int]], in_eight: Sequence[str]) -> int:
    """Of all layers, counted by hand: 4 and two of 16 for 32, or 8 and 32 for a row."""
    return sum(
        8 * out * inputs + 32 * out if name in in_eight else 4 * out * inputs + 2 * 16 * out * inputs // GROUP
        for name, (out, inputs) in shapes.items()
    )


@given(
    st.lists(st.tuples(st.integers(-5, 100), st.integers(1, 40)), min_size=1, max_size=9), st.integers(0, 200)
)
def test_no_other_choice_within_the_room_gains_more(items: list[tuple[int, int]], room: int) -> None:
    gains, costs = [float(gain) for gain, _ in items], [cost for _, cost in items]
    taken = knapsack(gains, costs, room)
    assert sum(itertools.compress(costs, taken)) <= room
    best = max(
        sum(itertools.compress(gains, choice))
        for choice in itertools.product((False, True), repeat=len(items))
        if sum(itertools.compress(costs, choice)) <= room
    )
    assert sum(itertools.compress(gains, taken)) == pytest.approx(best)


def test_the_best_a_bit_is_not_always_the_best() -> None:
    """Whoever takes what gains most a bit takes the first, and has no room for both others."""
    assert knapsack([9.0, 10.0, 10.0], [6, 10, 10], 20) == [False, True, True]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_matrices_are_those_of_the_graph(variant: str, tiny_targets: TinyTargets) -> None:
    weights = tiny_targets.weights(variant)
    shapes = matrix_shapes(weights.architecture)

    def layers(eight_bits: frozenset[str]) -> dict[str, str]:
        graph = build_target_graph(
            *(weights.architecture, weights),
            precision="int4",
            max_positions=64,
            block_size=32,
            eight_bits=eight_bits,
        ).graph
        kinds = {
            node.input[1].removesuffix(".codes"): node.op_type
            for node in graph.node
            if node.op_type == LINEAR
        }
        return kinds | {
            node.input[0]: node.op_type
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in shapes
        }

    some = frozenset(list(shapes)[::3])
    assert layers(frozenset()) == dict.fromkeys(shapes, LINEAR)
    assert layers(some) == {name: "DequantizeLinear" if name in some else LINEAR for name in shapes}


@pytest.mark.parametrize("bits_per_weight", [5.6, 6.3, 7.5])
def test_no_other_choice_under_the_budget_loses_less(
    bits_per_weight: float, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    weights = tiny_targets.weights(VARIANT)
    shapes = matrix_shapes(weights.architecture)
    budget = bits_per_weight * sum(map(math.prod, shapes.values()))
    compiled(tiny_targets, tmp_path, bits_per_weight)
    found = stored(tmp_path)
    chosen = [name for name in shapes if f"{name}.scale" in found]
    kept = sum(
        8 * found[f"{name}{end}"].nbytes
        for name in shapes
        for end in (("", ".scale") if name in chosen else (".codes", ".scales", ".least"))
    )
    assert kept == bits_of(shapes, chosen) <= budget
    others = [
        choice
        for count in range(len(shapes) + 1)
        for choice in itertools.combinations(shapes, count)
        if bits_of(shapes, choice) <= budget
    ]
    squares = input_squares(tiny_targets.source(VARIANT), weights)
    losses = [lost(weights, squares, choice) for choice in others]
    assert lost(weights, squares, chosen) == pytest.approx(min(losses))
    fullest = max(bits_of(shapes, choice) for choice in others)
    alike = [loss for loss, choice in zip(losses, others, strict=True) if bits_of(shapes, choice) == fullest]
    assert max(alike) > 1.02 * min(losses), "it matters which are chosen"


def test_all_in_eight_bits_are_those_of_an_engine_in_eight(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    """The greatest budget that a refusal names."""
    architecture = tiny_targets.weights(VARIANT).architecture
    with pytest.raises(EngineError) as refused:
        compiled(tiny_targets, tmp_path / "copy", 99)
    (most,) = re.findall(r"to (\d\.\d\d) \(all in eight\)", str(refused.value))
    compiled(tiny_targets, tmp_path / "copy", float(most))
    compile_engine(
        tiny_targets.source(VARIANT), tmp_path / "int8", precision="int8", max_sequence_length=MAX_LENGTH
    )
    ours, theirs = stored(tmp_path / "copy"), stored(tmp_path / "int8")
    for name in matrix_shapes(architecture):
        for each in (name, f"{name}.scale"):
            np.testing.assert_array_equal(ours[each], theirs[each])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_more_bits_the_closer_is_a_copy_to_its_target(
    kernel: KernelName, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    """And whatever it has, what is generated is the target's."""
    requests = [GenerationRequest(prompt_of(length), 40) for length in (3, 40, 100)]
    item = SequenceInput(prompt_of(60), 0, range(2), is_prompt=True)
    runner = tiny_targets.runner(VARIANT, "fp32", kernel)
    expected, errors = runner.forward([item]).copy(), []
    outputs = [generate(runner, each).tokens for each in requests]
    for bits_per_weight in (None, 7.5, 8.2):
        directory = tmp_path / str(bits_per_weight)
        compiled(tiny_targets, directory, bits_per_weight)
        manifest = load_speculator_manifest(directory)
        copy = CompiledCopy(directory / manifest.graphs[0], manifest, OpenVinoBackend(THREADS), runner)
        errors.append(float(np.linalg.norm(copy.forward([item]) - expected) / np.linalg.norm(expected)))
        engine = make_engine(runner, LowBitSpeculator(copy, 5), max_batch_size=4)
        assert [each.tokens for each in run(engine, requests)] == outputs
        assert engine.statistics.accepted_tokens > 0
    assert errors[1] < 0.9 * errors[0] and errors[2] < 0.5 * errors[0], errors


def test_what_four_bits_hold_stays_in_four(tiny_targets: TinyTargets) -> None:
    """All of it, or one matrix among others."""
    weights = tiny_targets.weights(VARIANT)
    architecture = weights.architecture
    held = {
        name: ungrouped(*grouped(weights[name])) if weights[name].ndim == 2 else weights[name]
        for name in weights
    }
    bits = LayerBits.of(architecture)
    most, alike = bits.most / bits.weights, alike_of(architecture)
    assert in_eight_bits(architecture, held, alike, most) == frozenset()
    one = "model.layers.1.self_attn.o_proj"
    mixed = {**weights, f"{one}.weight": held[f"{one}.weight"]}
    assert in_eight_bits(architecture, mixed, alike, most) == frozenset(matrix_shapes(architecture)) - {one}


def test_matrices_with_large_inputs_come_first(tiny_targets: TinyTargets) -> None:
    """Where they lose as much as others do."""
    weights = tiny_targets.weights(VARIANT)
    architecture = weights.architecture
    large = "model.layers.1.mlp.down_proj"
    alike = alike_of(architecture)
    assert large not in in_eight_bits(architecture, weights, {**alike, large: 0.01 * alike[large]}, 6.0)
    assert large in in_eight_bits(architecture, weights, {**alike, large: 100 * alike[large]}, 6.0)


def test_squares_are_those_of_what_the_target_reads(tiny_targets: TinyTargets) -> None:
    """Of the first matrix they can be told from the embedding alone."""
    source, weights = tiny_targets.source(VARIANT), tiny_targets.weights(VARIANT)
    texts = list(calibration_texts(source))
    rows = weights["model.embed_tokens.weight"][np.concatenate(texts)].astype(np.float64)
    root = np.sqrt(np.square(rows).mean(axis=1, keepdims=True) + weights.architecture.rms_norm_eps)
    normed = rows / root * weights["model.layers.0.input_layernorm.weight"]
    found = input_squares(source, weights)
    np.testing.assert_allclose(found[next(iter(found))], np.square(normed).mean(axis=0), rtol=0.02)
    assert {name: len(each) for name, each in found.items()} == {
        name: inputs for name, (_, inputs) in matrix_shapes(weights.architecture).items()
    }
    assert all((each >= 0).all() and each.any() for each in found.values())


def test_another_budget_is_another_copy(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    lines = [compiled(tiny_targets, tmp_path, bits) for bits in (6.0, 7.0, 7.0)]
    assert [line.endswith("up to date") for line in lines] == [False, False, True]
    assert load_speculator_manifest(tmp_path).settings["bits_per_weight"] == 7.0


@pytest.mark.parametrize("bits_per_weight", [4.6, 4.999, 8.5, 16.0])
def test_a_budget_that_no_choice_has_is_refused(
    bits_per_weight: float, tiny_targets: TinyTargets, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=rf"must be from 5\.00 .* to 8\.\d\d .*, not {bits_per_weight:g}"):
        compiled(tiny_targets, tmp_path / "copy", bits_per_weight)


def test_temporary_files_without_room_are_named(
    tiny_targets: TinyTargets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk of the engine has been asked for its room; where temporary files are may be another."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("build.input_squares.onnx.save_model", full)
    with pytest.raises(TargetError, match=re.escape(str(scratch)) + ".*: the disk is full"):
        compiled(tiny_targets, tmp_path / "copy", 6.0)
    assert not (tmp_path / "copy").exists() and not any(scratch.iterdir())
