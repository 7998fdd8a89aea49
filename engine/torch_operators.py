"""Runs the kit's ONNX graphs with PyTorch: the operators that `build.graph` uses, and no others.

It is written to be read beside the ONNX specification, operator by operator; it is the reference that the OpenVINO
engine is tested against, and what runs the same compiled engines on CUDA devices. Quantised weights are unpacked when
the graph is loaded. Norms are computed in fp32 whatever the weights are: squares of activations are.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper

from engine.grouped_weights import LINEAR, ungrouped
from engine.manifest import EngineError
from engine.paged_attention import DOMAIN

Tensor = torch.Tensor
Attention = Callable[[Mapping[str, Any], Sequence[Tensor], str], Tensor]
"""`attention(attributes, [queries, keys, values], name of the key cache)`: what paged attention puts out."""


class TorchOperators:
    """A graph that is ready to run.

    Args:
        path: an ONNX file of `build.graph`, its weights beside it.
        outputs: those that are wanted, None for all; what they do not need is left out.
        device: where it runs.
        dtype: of weights and activations.

    Raises:
        EngineError: the file is damaged, or has an operator that is not known here.
    """

    def __init__(
        self, path: Path, outputs: Sequence[str] | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        try:
            graph = onnx.load(str(path)).graph
        except Exception as error:  # protobuf's own errors have no common base
            raise EngineError(f"{path} is damaged ({error}); run `drafthouse build` again") from error
        self.input_shapes = {
            value.name: [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
            for value in graph.input
        }
        every = [value.name for value in graph.output]
        self._outputs = every if outputs is None else list(dict.fromkeys(outputs))
        self._device, self._dtype = device, dtype
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self._nodes: list[tuple[onnx.NodeProto, dict[str, Any]]] = []
        self._constants: dict[str, Tensor] = {}
        for node in _needed(graph, self._outputs):
            if node.op_type not in (*_OPERATORS, "DequantizeLinear", "PagedAttention", LINEAR):
                raise EngineError(
                    f"{path} has the operator {node.op_type}, which the PyTorch runner does not know"
                )
            if node.op_type == LINEAR:
                weight = f"{node.name}.weight"
                unpacked = ungrouped(*(stored[name] for name in node.input[1:]))
                self._constants[weight] = self._placed(torch.from_numpy(unpacked))
                self._nodes.append((helper.make_node("Gemm", [node.input[0], weight], node.output), {}))
                continue
            for name in node.input:
                if name in stored and name not in self._constants:
                    self._constants[name] = self._placed(torch.from_numpy(stored[name].copy()))
            if node.op_type == "DequantizeLinear":
                values, scale = (self._constants[name] for name in node.input)
                self._constants[node.output[0]] = values.to(dtype) * scale[:, None]
            else:
                attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
                self._nodes.append((node, attributes))

    def run(self, inputs: Mapping[str, Tensor], attention: Attention | None = None) -> dict[str, Tensor]:
        """Outputs by name."""
        values = {**self._constants, **inputs}
        with torch.inference_mode():
            for node, attributes in self._nodes:
                if node.domain == DOMAIN:
                    assert attention is not None  # only paged graphs have it
                    found: Any = attention(
                        attributes, [values[name] for name in node.input[:3]], node.input[3]
                    )
                else:
                    found = _OPERATORS[node.op_type](attributes, *(values[name] for name in node.input))
                several = found if isinstance(found, (tuple, list)) else (found,)
                values.update(zip(node.output, several, strict=True))
        return {name: values[name] for name in self._outputs}

    def _placed(self, value: Tensor) -> Tensor:
        """Weights and tables on the device; short integers are sizes and axes, which the host reads."""
        if value.is_floating_point():
            return value.to(self._device, self._dtype)
        return value if value.dtype == torch.int64 and value.numel() <= 8 else value.to(self._device)


def _needed(graph: onnx.GraphProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    wanted, nodes = set(outputs), []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def _gather(attributes: Mapping[str, Any], data: Tensor, indices: Tensor) -> Tensor:
    return data[indices.to(data.device)]


def _gemm(attributes: Mapping[str, Any], value: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(value.to(weight.dtype), weight, bias)  # transB = 1 is the only use


def _unsqueeze(attributes: Mapping[str, Any], value: Tensor, axes: Tensor) -> Tensor:
    for axis in axes.tolist():
        value = value.unsqueeze(axis)
    return value


def _top_k(attributes: Mapping[str, Any], value: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(value, int(count), dim=attributes["axis"])
    return values, indices


_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda attributes, left, right: left + right,
    "Concat": lambda attributes, *parts: torch.cat(parts, attributes["axis"]),
    "Div": lambda attributes, left, right: left / right,
    "Erf": lambda attributes, value: torch.erf(value),
    "Gather": _gather,
    "Gemm": _gemm,
    "Identity": lambda attributes, value: value,
    "LogSoftmax": lambda attributes, value: torch.log_softmax(value.float(), attributes["axis"]),
    "Mul": lambda attributes, left, right: left * right,
    "Pow": lambda attributes, value, power: value.float() ** power,
    "ReduceMean": lambda attributes, value, axes: value.mean(axes.tolist(), keepdim=True),
    "Reshape": lambda attributes, value, shape: value.reshape(shape.tolist()),
    "Sigmoid": lambda attributes, value: torch.sigmoid(value),
    "Split": lambda attributes, value, sizes: torch.split(value, sizes.tolist(), attributes["axis"]),
    "Sqrt": lambda attributes, value: torch.sqrt(value),
    "Tanh": lambda attributes, value: torch.tanh(value),
    "TopK": _top_k,
    "Unsqueeze": _unsqueeze,
}
