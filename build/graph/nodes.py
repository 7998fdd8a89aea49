"""A thin layer over `onnx.helper`: collects nodes and initializers, names values, quantises weights.

Every activation is two-dimensional, [tokens, features]: the requests of a step stand one after another without
padding, which is also the layout that paged attention takes.
"""

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from build.graph.low_rank import corrected
from deployments.engines import Precision
from engine.grouped_weights import LINEAR, can_be_grouped, quantize_rows
from engine.paged_attention import DOMAIN

OPSET = 18  # the newest that OpenVINO's ONNX front end reads without exceptions

Array = NDArray[Any]


class GraphBuilder:
    """Grows one ONNX graph; methods return the name of the value they add.

    Args:
        precision: of its matrices: fp32, int8, or int4 for those of layers and int8 for the others.
        rank: of what is added to matrices in int4 for what they lose; 0: nothing.
        squares: mean squares [in] of the inputs of matrices of layers, by which that is weighed; without, all count
            alike.
        eight_bits: names of matrices of layers that are int8 where the others are int4.
    """

    def __init__(
        self,
        precision: Precision,
        rank: int = 0,
        squares: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
        eight_bits: Set[str] = frozenset(),
    ) -> None:
        self._precision, self._rank, self._squares = precision, rank, squares
        self._eight_bits = eight_bits
        self.inputs_of_layers: dict[str, str] = {}
        """What each matrix of layers is multiplied with."""
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def input(self, name: str, kind: int, shape: Sequence[int | str]) -> str:
        """Declare a graph input; strings are dimensions that vary."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def node(self, operator: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        self._count += 1
        names = [f"{operator.lower()}_{self._count}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(operator, list(inputs), names, name=names[0], **attributes))
        return names

    def constant(self, value: Array, name: str | None = None) -> str:
        """An initializer; the same name is stored once."""
        name = name or f"constant_{len(self._initializers)}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        """A one-dimensional int64 initializer, shared between its users."""
        return self.constant(np.array(values, np.int64), "integers_" + "_".join(map(str, values)))

    def matrix(self, weight: NDArray[np.float32], name: str) -> str:
        """A weight [out, in]: int8 behind `DequantizeLinear` if the graph is quantised, fp32 otherwise."""
        dequantized = f"{name}.dequantized"
        if self._precision == "fp32":
            return self.constant(weight.astype(np.float32), name)
        if f"{name}.scale" not in self._initializers:
            values, scale = quantize_rows(weight.astype(np.float32))
            inputs = [self.constant(values, name), self.constant(scale, f"{name}.scale")]
            self._nodes.append(
                helper.make_node("DequantizeLinear", inputs, [dequantized], name=dequantized, axis=0)
            )
        return dequantized

    def linear(self, value: str, weight: NDArray[np.float32], name: str, bias: Array | None = None) -> str:
        """value [tokens, in] times weight [out, in] transposed, plus bias [out]."""
        inputs = [value, self.matrix(weight, name)]
        if bias is not None:
            inputs.append(self.constant(bias.astype(np.float32), f"{name}.bias"))
        return self.node("Gemm", inputs, transB=1)[0]

    def layer(
        self, value: str, weight: NDArray[np.float32], name: str, bias: NDArray[np.float32] | None = None
    ) -> str:
        """As `linear`, of a matrix that may have four bits."""
        self.inputs_of_layers[name] = value
        if self._precision != "int4" or name in self._eight_bits or not can_be_grouped(weight.shape):
            return self.linear(value, weight, name, bias)
        found = corrected(weight, self._rank, self._squares.get(name))
        codes, scales, least = found.four_bits
        constants = [
            self.constant(codes, f"{name}.codes"),
            self.constant(scales, f"{name}.scales"),
            self.constant(least, f"{name}.least"),
        ]
        output = self.node(LINEAR, [value, *constants], domain=DOMAIN)[0]
        if found.left is not None and found.right is not None:
            inner = self.linear(value, found.right, f"{name}.right")
            output = self.node("Add", [output, self.linear(inner, found.left, f"{name}.left")])[0]
        if bias is None:
            return output
        return self.node("Add", [output, self.constant(bias.astype(np.float32), f"{name}.bias")])[0]

    def multiply(self, value: str, factor: float) -> str:
        """value times a scalar; nothing is added for 1."""
        if factor == 1.0:
            return value
        return self.node("Mul", [value, self.constant(np.array(factor, np.float32))])[0]

    def rms_norm(self, value: str, weight: Array, epsilon: float) -> str:
        """Root-mean-square norm over the last axis, in the shape that OpenVINO fuses into one operator."""
        square = self.node("Pow", [value, self.constant(np.array(2, np.float32), "two")])[0]
        mean = self.node("ReduceMean", [square, self.integers(-1)], keepdims=1)[0]
        shifted = self.node("Add", [mean, self.constant(np.array(epsilon, np.float32), "epsilon")])[0]
        root = self.node("Sqrt", [shifted])[0]
        inverse = self.node("Div", [self.constant(np.array(1, np.float32), "one"), root])[0]
        scaled = self.node("Mul", [value, inverse])[0]
        return self.node("Mul", [scaled, self.constant(weight.astype(np.float32))])[0]

    def silu(self, value: str) -> str:
        """value times its logistic function."""
        return self.node("Mul", [value, self.node("Sigmoid", [value])[0]])[0]

    def gelu(self, value: str) -> str:
        """The exact GELU, in the shape that OpenVINO fuses into one operator."""
        scaled = self.node("Div", [value, self.constant(np.array(np.sqrt(2), np.float32), "root_two")])[0]
        shifted = self.node(
            "Add", [self.node("Erf", [scaled])[0], self.constant(np.array(1, np.float32), "one")]
        )
        return self.multiply(self.node("Mul", [value, shifted[0]])[0], 0.5)

    def gelu_tanh(self, value: str) -> str:
        """The tanh approximation of GELU, in the shape that OpenVINO fuses into one operator."""
        cube = self.node("Pow", [value, self.constant(np.array(3, np.float32), "three")])[0]
        inner = self.node("Add", [value, self.multiply(cube, 0.044715)])[0]
        tanh = self.node("Tanh", [self.multiply(inner, float(np.sqrt(2 / np.pi)))])
        shifted = self.node("Add", [tanh[0], self.constant(np.array(1, np.float32), "one")])
        return self.node("Mul", [value, self.multiply(shifted[0], 0.5)])[0]

    def candidates(self, logits: str, count: int, ids: NDArray[np.int64] | None) -> dict[str, str]:
        """Outputs for the `count` likeliest tokens of logits [..., V].

        Args:
            logits: the scores.
            count: how many.
            ids: of each of the V tokens the target's id; None if they are the target's own.

        Returns:
            `log_probs` float [..., count], falling, and `candidates` int64 [..., count].
        """
        log_probs = self.node("LogSoftmax", [logits], axis=-1)[0]
        values, indices = self.node("TopK", [log_probs, self.integers(count)], 2, axis=-1)
        if ids is not None:
            indices = self.node("Gather", [self.constant(ids, "target_ids"), indices])[0]
        return {"log_probs": values, "candidates": indices}

    def model(self, outputs: dict[str, str], name: str) -> onnx.ModelProto:
        """The finished model; `outputs` maps public output names to values, `candidates` being integers."""
        for public, value in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [public], name=f"output_{public}"))
        kinds = {
            public: TensorProto.INT64 if public == "candidates" else TensorProto.FLOAT for public in outputs
        }
        results = [helper.make_tensor_value_info(public, kind, None) for public, kind in kinds.items()]
        graph = helper.make_graph(self._nodes, name, self._inputs, results, list(self._initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="drafthouse")
