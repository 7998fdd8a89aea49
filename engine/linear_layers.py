"""The linear layers of OpenVINO graphs that the kit's kernel multiplies instead of OpenVINO's.

Four-bit layers: OpenVINO multiplies groups of four bits with a few rows more slowly than eight bits a channel (53 ms
against 13 for 8 rows of SmolLM2-135M), and not in an order that is independent of the number of rows. So without the
kit's kernel such layers are unpacked and rounded again, to what int8 engines have.

Eight-bit layers: without VNNI, OpenVINO multiplies them as fp32, in an order that depends on the number of rows. There
the kit's kernel takes them over: a step of 8 or 16 rows of SmolLM2-135M takes 0.53 to 0.75 of the time on a Zen 3.
"""

from collections.abc import Set
from typing import NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.utils.node_factory import NodeFactory

from engine.attention_kernels import Attention, chosen_kernel
from engine.grouped_weights import LINEAR, can_be_grouped, quantize_rows, ungrouped
from engine.native.build import library_path
from engine.native.library import has_vnni
from engine.native.linear import NativeWeights
from engine.paged_attention import DOMAIN


def on_the_kernel(how: Attention) -> Set[int]:
    """Of how many bits the weights are that the kit's kernel multiplies.

    Raises:
        EngineError: see `chosen_kernel`.
    """
    if chosen_kernel(how) == "openvino":
        return frozenset()
    return frozenset({4} if has_vnni() else {4, 8})


class LinearLayers:
    """Of one network; its graphs are good as long as this object is there.

    Args:
        native: whether the kit's kernel is used.
    """

    def __init__(self, *, native: bool) -> None:
        self._native = native
        self._eight_bits = native and not has_vnni()
        self._four_bits: list[NativeWeights] = []
        self._by_name: dict[str, NativeWeights] = {}
        self._factory = NodeFactory()
        if native:
            self._factory.add_extension(str(library_path()))

    @property
    def num_bytes(self) -> int:
        """Of the weights that the kernel has taken over from the graphs that were read."""
        return sum(each.num_bytes for each in (*self._four_bits, *self._by_name.values()))

    def extension(self) -> ConversionExtension:
        """For an `ov.Core`, before it reads the graph: its four-bit layers."""
        return ConversionExtension(LINEAR, DOMAIN, self._on_the_kernel if self._native else _on_openvino)

    def take_over(self, model: ov.Model) -> None:
        """Change the eight-bit layers of a graph where the kit's kernel is the better one."""
        if not self._eight_bits:
            return
        for node in model.get_ordered_ops():
            if (layer := _eight_bit_layer(node)) is None:
                continue
            if layer.name not in self._by_name:
                self._by_name[layer.name] = NativeWeights.eight_bits(layer.values, layer.scales)
            product = self._multiplied(node.input_value(0), self._by_name[layer.name])
            product.set_names(node.output(0).get_names())
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(product)

    def _on_the_kernel(self, node: NodeContext) -> list[ov.Output]:
        weights = NativeWeights.four_bits(*_constants(node))
        self._four_bits.append(weights)
        return [self._multiplied(node.get_input(0), weights)]

    def _multiplied(self, rows: ov.Output, weights: NativeWeights) -> ov.Output:
        attributes = {"weights": weights.number, "outputs": weights.outputs}
        return self._factory.create(LINEAR, [rows], attributes).output(0)


class _EightBits(NamedTuple):
    name: str
    values: NDArray[np.int8]
    scales: NDArray[np.float32]


def _eight_bit_layer(node: ov.Node) -> _EightBits | None:
    """The weights of rows times int8 values with a scale an output, as `DequantizeLinear` and `Gemm` are read."""
    if node.get_type_name() != "MatMul" or node.get_attributes() != {
        "transpose_a": False,
        "transpose_b": True,
    }:
        return None
    scaled = node.input_value(1).get_node()
    if scaled.get_type_name() != "Multiply":
        return None
    values, scales = (_unwrapped(scaled.input_value(index).get_node()) for index in (0, 1))
    if not (isinstance(values, ov.op.Constant) and isinstance(scales, ov.op.Constant)):
        return None
    shape = tuple(values.get_output_shape(0))
    two_dimensional = node.get_input_partial_shape(0).rank.get_length() == 2 == len(shape)
    if values.get_element_type() != ov.Type.i8 or not two_dimensional or not can_be_grouped(shape):
        return None
    return _EightBits(values.get_friendly_name(), values.data, scales.data.reshape(-1))


def _unwrapped(node: ov.Node) -> ov.Node:
    """What is converted or reshaped."""
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    return node


def _on_openvino(node: NodeContext) -> list[ov.Output]:
    values, scale = quantize_rows(ungrouped(*_constants(node)))
    unpacked = ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scale[:, None]))
    return [ops.matmul(node.get_input(0), unpacked, False, True).output(0)]


def _constants(node: NodeContext) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    codes, scales, least = (node.get_input(index).get_node().data for index in (1, 2, 3))
    return codes, scales, least
