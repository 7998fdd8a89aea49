"""The four-bit linear layers of OpenVINO graphs: on the kit's kernel, or rounded to eight bits on OpenVINO's own.

OpenVINO multiplies groups of four bits with a few rows more slowly than eight bits a channel (53 ms against 13 for 8
rows of SmolLM2-135M), and not in an order that is independent of the number of rows. So without the kit's kernel such
layers are unpacked and rounded again, to what int8 engines have.
"""

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.frontend import NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.utils.node_factory import NodeFactory

from engine.grouped_weights import LINEAR, quantize_rows, ungrouped
from engine.native.build import library_path
from engine.native.linear import NativeWeights
from engine.paged_attention import DOMAIN


class LinearLayers:
    """Of one network; its graphs are good as long as this object is there.

    Args:
        native: whether the kit's kernel is used.
    """

    def __init__(self, *, native: bool) -> None:
        self._native = native
        self._weights: list[NativeWeights] = []
        self._factory = NodeFactory()
        if native:
            self._factory.add_extension(str(library_path()))

    def extension(self) -> ConversionExtension:
        """For an `ov.Core`, before it reads the graph."""
        return ConversionExtension(LINEAR, DOMAIN, self._on_the_kernel if self._native else _on_openvino)

    def _on_the_kernel(self, node: NodeContext) -> list[ov.Output]:
        weights = NativeWeights(*_constants(node))
        self._weights.append(weights)
        attributes = {"weights": weights.number, "outputs": weights.outputs}
        return [self._factory.create(LINEAR, [node.get_input(0)], attributes).output(0)]


def _on_openvino(node: NodeContext) -> list[ov.Output]:
    values, scale = quantize_rows(ungrouped(*_constants(node)))
    unpacked = ops.multiply(ops.convert(ops.constant(values), "f32"), ops.constant(scale[:, None]))
    return [ops.matmul(node.get_input(0), unpacked, False, True).output(0)]


def _constants(node: NodeContext) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16]]:
    codes, scales, least = (node.get_input(index).get_node().data for index in (1, 2, 3))
    return codes, scales, least
