"""The compiled graph computes what the reference model computes, in every family."""

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engine.attention_kernels import KernelName
from engine.compiled_runner import CompiledRunner
from engine.grouped_weights import LINEAR, can_be_grouped, grouped, quantize_rows, ungrouped
from engine.runner import SequenceInput
from tests.reference_model import forward
from tests.tiny import KERNELS, VARIANTS, TinyTargets

TOLERANCE = 1e-4
BLOCKS = (7, 3, 5)  # neither sorted nor adjacent
PROMPT, CHUNK, CHAIN = 40, 29, 6
TOKENS: list[int] = np.random.default_rng(7).integers(0, 265, 70).tolist()


def _engine_logits(runner: CompiledRunner) -> NDArray[np.float32]:
    """Logits of TOKENS by way of two prompt chunks, single tokens, and verified chains."""
    pieces, past = [], 0
    for length, is_prompt in (
        (CHUNK, True),
        (PROMPT - CHUNK, True),
        *[(1, False)] * 6,
        *[(CHAIN, False)] * 4,
    ):
        tokens = TOKENS[past : past + length]
        pieces.append(runner.forward([SequenceInput(tokens, past, BLOCKS, is_prompt=is_prompt)]).copy())
        past += length
    assert past == len(TOKENS)
    return np.concatenate(pieces)


def _relative_error(found: NDArray[np.float32], expected: NDArray[np.floating]) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp32_equals_the_reference(variant: str, tiny_targets: TinyTargets) -> None:
    weights = tiny_targets.weights(variant)
    expected = forward(weights.architecture, weights, TOKENS)
    found = _engine_logits(tiny_targets.runner(variant, "fp32"))
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_is_close_to_the_reference(variant: str, tiny_targets: TinyTargets) -> None:
    """Most of the difference is that of rounded weights; rounded activations add little."""
    weights = tiny_targets.weights(variant)
    found = _engine_logits(tiny_targets.runner(variant, "int8"))
    rounded = {name: _rounded(name, values) for name, values in weights.items()}
    assert _relative_error(found, forward(weights.architecture, weights, TOKENS)) < 0.1
    assert _relative_error(found, forward(weights.architecture, rounded, TOKENS)) < 0.05


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_int4_is_close_to_the_reference_of_its_weights(
    variant: str, kernel: KernelName, tiny_targets: TinyTargets
) -> None:
    weights = tiny_targets.weights(variant)
    found = _engine_logits(tiny_targets.runner(variant, "int4", kernel))
    in_layers = {name: _grouped(name, values) for name, values in weights.items()}
    assert _relative_error(found, forward(weights.architecture, in_layers, TOKENS)) < 0.05


def test_int4_layers_are_stored_as_int4(tiny_targets: TinyTargets) -> None:
    graph = onnx.load(
        str(tiny_targets.engine("llama biases", "int4") / "model.onnx"), load_external_data=False
    ).graph
    assert [node.op_type for node in graph.node].count(LINEAR) == 4 * 2
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert types["model.embed_tokens.weight"] == types["lm_head.weight"] == onnx.TensorProto.INT8
    assert types["model.layers.1.mlp.down_proj.codes"] == onnx.TensorProto.UINT8


def _grouped(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.ndim == 1:
        return values
    if not name.startswith("model.layers."):
        return _rounded(name, values)
    assert can_be_grouped(values.shape)
    return ungrouped(*grouped(values))


def _rounded(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.ndim == 1:
        return values
    integers, scale = quantize_rows(values)
    return integers * scale[:, None]


def test_rows_are_quantised_to_the_nearest_of_255_values() -> None:
    weight = np.random.default_rng(0).standard_normal((5, 64), np.float32)
    weight[2] = 0
    values, scale = quantize_rows(weight)
    assert values.dtype == np.int8 and np.abs(values).max() == 127
    assert (np.abs(values * scale[:, None] - weight) <= scale[:, None] / 2 * 1.00001).all()
    assert not values[2].any() and np.isfinite(scale).all()


def test_int8_weights_are_stored_as_int8(tiny_targets: TinyTargets) -> None:
    sizes = [
        (tiny_targets.engine("llama", precision) / "model.onnx.data").stat().st_size
        for precision in ("int8", "fp32")
    ]
    rotary = 2 * 256 * 32 * 4
    assert (sizes[0] - rotary) < 0.3 * (sizes[1] - rotary)


def test_only_wanted_logits_are_computed(tiny_targets: TinyTargets) -> None:
    runner = tiny_targets.runner("llama", "fp32")
    everything = runner.forward([SequenceInput(TOKENS[:20], 0, BLOCKS, is_prompt=True)]).copy()
    some = runner.forward([SequenceInput(TOKENS[:20], 0, BLOCKS, is_prompt=True, logits_from=17)]).copy()
    none = runner.forward([SequenceInput(TOKENS[:20], 0, BLOCKS, is_prompt=True, logits_from=20)])
    np.testing.assert_array_equal(some, everything[17:])
    assert none.shape == (0, 265)
