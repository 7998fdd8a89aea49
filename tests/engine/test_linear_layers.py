"""Which layers of a graph the kit's kernel takes over, and that they compute what they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from build.graph.nodes import GraphBuilder
from engine.linear_layers import LinearLayers
from engine.native.library import instructions
from engine.openvino_graphs import PlainGraph, settings

pytestmark = pytest.mark.skipif(instructions() is None, reason="the kit's kernel does not run here")
INPUTS, INNER, OUTPUTS = 64, 96, 48
ROWS = 41


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.linear_layers.has_vnni", lambda: False)


def saved(directory: Path, precision: str, inner: int = INNER) -> Path:
    """Two layers and an activation between them; the first matrix is used twice."""
    random, builder = np.random.default_rng(3), GraphBuilder("int8" if precision == "int8" else "fp32")
    weight = random.standard_normal((inner, INPUTS), np.float32)
    value = builder.input("value", onnx.TensorProto.FLOAT, ["rows", INPUTS])
    first = builder.linear(value, weight, "first", random.standard_normal(inner).astype(np.float32))
    twice = builder.node("Add", [builder.silu(first), builder.linear(value, weight, "first")])[0]
    last = builder.linear(twice, random.standard_normal((OUTPUTS, inner), np.float32), "last")
    path = directory / f"{precision}-{inner}.onnx"
    onnx.save(builder.model({"last": last, "first": first}, "layers"), str(path))
    return path


def run(path: Path, layers: LinearLayers, rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    graph = PlainGraph(path, settings(precision="int8", widths=(INPUTS, INNER), threads=2), layers)
    return {name: np.array(values) for name, values in graph({"value": rows}).items()}


def some_rows() -> NDArray[np.float32]:
    return np.random.default_rng(4).standard_normal((ROWS, INPUTS), np.float32)


def test_int8_layers_are_taken_over_where_there_is_no_vnni(tmp_path: Path, without_vnni: None) -> None:
    path, rows, layers = saved(tmp_path, "int8"), some_rows(), LinearLayers(native=True)
    found, expected = run(path, layers, rows), run(path, LinearLayers(native=False), rows)
    assert layers.num_bytes == INNER * (INPUTS + 4) + OUTPUTS * (
        INNER + 4
    )  # the one used twice is packed once
    assert {"last", "first"} <= found.keys() == expected.keys()
    for name, values in expected.items():
        # Rounded to 254 steps a group, on both sides or on one of them.
        assert np.abs(found[name] - values).max() < 0.02 * np.abs(values).max()
        assert (found[name] != values).any()  # or it would be OpenVINO's on both sides


def test_a_row_has_the_same_bits_in_any_number_of_rows(tmp_path: Path, without_vnni: None) -> None:
    path, rows, layers = saved(tmp_path, "int8"), some_rows(), LinearLayers(native=True)
    together = run(path, layers, rows)
    for count in (1, 2, 7, 16):
        alone = run(path, layers, rows[:count])
        for name, values in alone.items():
            np.testing.assert_array_equal(values, together[name][:count])


@pytest.mark.parametrize("native", [True, False])
def test_openvino_keeps_int8_layers_where_there_is_vnni(
    native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.linear_layers.has_vnni", lambda: True)
    path, rows, layers = saved(tmp_path, "int8"), some_rows(), LinearLayers(native=native)
    found = run(path, layers, rows)
    assert not layers.num_bytes
    for name, values in run(path, LinearLayers(native=False), rows).items():
        np.testing.assert_array_equal(values, found[name])


def test_layers_that_do_not_fit_stay_with_openvino(tmp_path: Path, without_vnni: None) -> None:
    """A matrix of 40 outputs has no whole tiles, and as 40 inputs no whole groups."""
    path, rows, layers = saved(tmp_path, "int8", inner=40), some_rows(), LinearLayers(native=True)
    found = run(path, layers, rows)
    assert not layers.num_bytes
    assert found["last"].shape == (ROWS, OUTPUTS)


def test_fp32_layers_stay_with_openvino(tmp_path: Path, without_vnni: None) -> None:
    layers = LinearLayers(native=True)
    run(saved(tmp_path, "fp32"), layers, some_rows())
    assert not layers.num_bytes
