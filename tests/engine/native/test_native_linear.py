"""Linear layers of four and eight bits: what is computed, and that nothing but a row's own inputs decides it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.grouped_weights import GROUP, grouped, quantize_rows, ungrouped
from engine.native.library import NativeError, has_vnni, instructions, load_library
from engine.native.linear import NativeWeights

pytestmark = pytest.mark.skipif(instructions() is None, reason="the kit's kernel does not run here")
SIZES = [(bits, *size) for bits in (4, 8) for size in ((16, 32), (48, 96), (576, 1536), (3072, 576))]


@pytest.fixture(params=["avx512", "avx2"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    library, best = load_library(), instructions()
    assert library is not None and best is not None
    if not library.drafthouse_use_instructions(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    library.drafthouse_use_instructions(best.encode())


def layer(
    bits: int, outputs: int, inputs: int
) -> tuple[NativeWeights, NDArray[np.float32], NDArray[np.float32]]:
    """Packed weights, what they stand for, and 19 rows with outliers, zeros and a row of zeros."""
    random = np.random.default_rng([outputs, inputs])
    weight = random.standard_normal((outputs, inputs), np.float32) * np.float32(0.05)
    rows = random.standard_normal((19, inputs), np.float32)
    rows[3, ::7] *= 100
    rows[5, :GROUP] = 0
    rows[6] = 0
    if bits == 4:
        parts = grouped(weight)
        return NativeWeights.four_bits(*parts), ungrouped(*parts), rows
    weight[:, 0] *= 20  # so that values of all sizes are there, the largest with both signs
    values, scales = quantize_rows(weight)
    return NativeWeights.eight_bits(values, scales), values * scales[:, None], rows


def rounded(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Inputs as the kernel takes them: symmetric eight bits in groups."""
    groups = rows.reshape(len(rows), -1, GROUP).astype(np.float64)
    bound = np.abs(groups).max(axis=2, keepdims=True)
    scale = np.where(bound == 0, 1, bound / 127)
    nearest: NDArray[np.float64] = np.rint(groups / scale) * scale
    return nearest.reshape(rows.shape)


@pytest.mark.parametrize(("bits", "outputs", "inputs"), SIZES)
def test_products_are_those_of_the_rounded_inputs(
    bits: int, outputs: int, inputs: int, instruction_set: str
) -> None:
    weights, values, rows = layer(bits, outputs, inputs)
    found = weights.multiply(rows)
    exact = rounded(rows) @ values.astype(np.float64).T
    # A value halfway between two codes may go either way in fp32: one step of one input, at most some a row.
    step = np.abs(rows).max(axis=1, keepdims=True) / 127 * np.abs(values).max()
    assert (np.abs(found - exact) <= 1e-5 * np.abs(exact).max() + 2 * step).all()
    typical = np.median(np.abs(found - exact), axis=1) / np.maximum(np.abs(exact).max(axis=1), 1e-9)
    assert (typical < 1e-5).all()
    assert not found[6].any()


@pytest.mark.parametrize(("bits", "outputs", "inputs"), SIZES)
def test_a_row_is_the_same_alone_in_company_and_on_threads(
    bits: int, outputs: int, inputs: int, instruction_set: str
) -> None:
    weights, _, rows = layer(bits, outputs, inputs)
    together = weights.multiply(rows)
    for count in (1, 2, 3, 4, 8, 9, 15):
        np.testing.assert_array_equal(weights.multiply(rows[4 : 4 + count]), together[4 : 4 + count])
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(weights.multiply(rows, threads), together)


@pytest.mark.parametrize(("bits", "outputs", "inputs"), SIZES)
def test_both_instruction_sets_give_the_same_bits(bits: int, outputs: int, inputs: int) -> None:
    library, best = load_library(), instructions()
    assert library is not None and best is not None
    if best != "avx512":
        pytest.skip("this processor has one of them")
    weights, _, rows = layer(bits, outputs, inputs)
    found = weights.multiply(rows)
    library.drafthouse_use_instructions(b"avx2")
    try:
        np.testing.assert_array_equal(weights.multiply(rows), found)
    finally:
        library.drafthouse_use_instructions(b"avx512")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_stays_in_its_row(strange: float, bits: int, instruction_set: str) -> None:
    weights, _, rows = layer(bits, 48, 96)
    clean = weights.multiply(rows)
    rows[2, 40] = strange
    found = weights.multiply(rows)
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(np.delete(found, 2, axis=0), np.delete(clean, 2, axis=0))


@pytest.mark.parametrize(("outputs", "inputs"), [(8, 32), (24, 64), (16, 48), (16, 0), (0, 32)])
def test_sizes_that_do_not_fit_are_refused(outputs: int, inputs: int) -> None:
    groups = np.zeros((outputs, max(1, inputs // GROUP)), np.float16)
    with pytest.raises(NativeError, match="multiples of 16 and 32"):
        NativeWeights.four_bits(np.zeros((outputs, inputs // 2), np.uint8), groups, groups)
    with pytest.raises(NativeError, match="multiples of 16 and 32"):
        NativeWeights.eight_bits(np.zeros((outputs, inputs), np.int8), np.ones(outputs, np.float32))


def test_the_largest_products_have_room(instruction_set: str) -> None:
    """Everything at its bound, of both signs: sums that are kept in 16 bits, or saturate there, would show it."""
    rows = np.tile(np.float32([[127], [-127]]), (1, 1536))
    for sign in (1, -1):
        values = np.full((16, 1536), 127 * sign, np.int8)
        found = NativeWeights.eight_bits(values, np.ones(16, np.float32)).multiply(rows)
        np.testing.assert_array_equal(found, np.float32([[sign], [-sign]]) * np.ones(16) * 127 * 127 * 1536)
    codes, ones = np.full((16, 768), 0xFF, np.uint8), np.ones((16, 48), np.float16)
    found = NativeWeights.four_bits(codes, ones, np.zeros_like(ones)).multiply(rows)
    np.testing.assert_array_equal(found, np.float32([[1], [-1]]) * np.ones(16) * 15 * 127 * 1536)


def test_vnni_is_what_the_kernel_of_the_system_says() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_vnni() == bool(flags & {"avx512_vnni", "avx_vnni"})


def test_a_q4_1_file_keeps_its_values() -> None:
    """Against the package of GGUF's own authors: blocks that it has quantised come out as they are."""
    weight = np.random.default_rng(5).standard_normal((64, 256), np.float32) * np.float32(0.1)
    stored = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q4_1)
    values = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q4_1)
    found = ungrouped(*grouped(values))
    assert np.abs(found - values).max() <= 2**-10 * np.abs(values).max()
    step = (values.reshape(-1, GROUP).max(axis=1) - values.reshape(-1, GROUP).min(axis=1)) / 15
    error = np.abs(found - weight).reshape(-1, GROUP).max(axis=1)
    assert (error <= step * 0.51 + 1e-3).all()


def test_groups_of_one_value_and_of_zeros_are_exact() -> None:
    weight = np.zeros((16, 64), np.float32)
    weight[:, GROUP:] = 0.25
    np.testing.assert_array_equal(ungrouped(*grouped(weight)), weight)
