"""Drafters' graphs whose output is computed by a tree: the likeliest leaves are found, and only their rows are read."""

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.nodes import GraphBuilder
from deployments.engines import Precision
from tests.conditional.tree import OutputTree, path_signs

_REPLACED = ("candidates", "log_probs")
_STATE = "state_of_the_tree"


def with_tree(
    model: onnx.ModelProto,
    output: NDArray[np.float32],
    ids: NDArray[np.int64],
    tree: OutputTree,
    *,
    name: str,
    precision: Precision,
    count: int,
) -> onnx.ModelProto:
    """A compiled drafter with a tree over its output.

    Args:
        model: the drafter, with all rows computed.
        output: its output matrix ``[W, H]``.
        ids: the target's ids of the rows.
        tree: the tree.
        name: of the output matrix in the graph.
        precision: of both.
        count: candidates of a row.
    """
    (dense,) = (
        node for node in model.graph.node if node.op_type == "Gemm" and node.input[1].startswith(name)
    )
    part = GraphBuilder(precision)
    state = part.input(_STATE, TensorProto.FLOAT, ["rows", output.shape[1]])
    small = part.model(_candidates(part, state, output, ids, tree, count), "tree")
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph, kept = found.graph, {value.name for value in model.graph.output if value.name not in _REPLACED}
    nodes = _needed(model.graph.node, {*kept, dense.input[0]}) + _renamed(small.graph.node, dense.input[0])
    initializers = list(model.graph.initializer)
    for tensor in small.graph.initializer:
        tensor.name = f"tree.{tensor.name}"
        initializers.append(tensor)
    read = {value for node in nodes for value in node.input}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in initializers if tensor.name in read)
    return found


def _candidates(
    graph: GraphBuilder,
    state: str,
    output: NDArray[np.float32],
    ids: NDArray[np.int64],
    tree: OutputTree,
    count: int,
) -> dict[str, str]:
    """As `GraphBuilder.candidates`; the rows of a leaf lie side by side."""
    wanted = tree.read * tree.leaves.shape[1]
    log_probs, chosen = graph.node(
        "TopK", [_leaf_log_probs(graph, state, tree), graph.integers(tree.read)], 2, axis=-1
    )

    def of_leaves(table: NDArray[np.int64]) -> str:
        found = graph.node("Gather", [graph.constant(table), chosen])[0]
        return graph.node("Reshape", [found, graph.integers(-1, wanted)])[0]

    matrix = graph.matrix(output[tree.leaves.ravel()], "output")
    read = graph.node("Gather", [matrix, of_leaves(np.arange(len(ids)).reshape(tree.leaves.shape))])[0]
    column = graph.node("Unsqueeze", [state, graph.integers(2)])[0]
    product = graph.node("MatMul", [read, column])[0]
    logits = graph.node("Reshape", [product, graph.integers(-1, wanted)])[0]
    within = graph.node("LogSoftmax", [logits], axis=-1)[0]
    share = graph.node("ReduceLogSumExp", [log_probs, graph.integers(-1)], keepdims=1)[0]
    scores = graph.node("Add", [within, share])[0]
    values, places = graph.node("TopK", [scores, graph.integers(count)], 2, axis=-1)
    tokens = graph.node("GatherElements", [of_leaves(ids[tree.leaves]), places], axis=1)[0]
    return {"log_probs": values, "candidates": tokens}


def _leaf_log_probs(graph: GraphBuilder, state: str, tree: OutputTree) -> str:
    """Of each leaf the sum over its path: log sigmoid(s) where it goes to the second child, and less s to the first."""
    scores = graph.linear(state, tree.nodes, "nodes")
    against = graph.node("Softplus", [graph.multiply(scores, -1.0)])[0]
    signs = path_signs(len(tree.leaves))
    paths = -np.concatenate([np.abs(signs), np.maximum(-signs, 0)], axis=1).T
    return graph.node("MatMul", [graph.node("Concat", [against, scores], axis=1)[0], graph.constant(paths)])[
        0
    ]


def _needed(every: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    wanted, nodes = set(outputs), []
    for node in reversed(every):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.append(node)
    return nodes[::-1]


def _renamed(nodes: Sequence[onnx.NodeProto], state: str) -> list[onnx.NodeProto]:
    """Nodes of the tree's graph, with names of their own in the drafter's."""
    fixed = {_STATE: state, **{name: name for name in _REPLACED}}
    renamed = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"tree.{node.name}"
        copy.input[:] = [fixed.get(name, f"tree.{name}") for name in node.input]
        copy.output[:] = [fixed.get(name, f"tree.{name}") for name in node.output]
        renamed.append(copy)
    return renamed
