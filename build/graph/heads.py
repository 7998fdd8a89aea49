"""Heads without attention as ONNX graphs: the stages of an MLP speculator, Medusa heads.

Both read hidden states of the target and give the likeliest tokens after them, best first: `candidates` and
`log_probs`. What they compute is written down in `speculators.mlp_speculator.model` and `speculators.medusa.model`.
"""

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.nodes import Array, GraphBuilder
from build.vocabulary import fitted
from deployments.engines import Precision
from speculators.medusa.checkpoint import MedusaCheckpoint, hidden_size, output_name
from speculators.mlp_speculator.checkpoint import MlpSpeculatorCheckpoint, stored_name

_NORM_EPSILON = 1e-6


def build_mlp_stage(
    checkpoint: MlpSpeculatorCheckpoint,
    stage: int,
    kept: NDArray[np.int64] | None,
    *,
    precision: Precision,
    count: int,
    read: int | None = None,
) -> onnx.ModelProto:
    """One stage, with the output rows `kept` (None: all), that reads tokens below `read` (None: its own vocabulary).

    Inputs: `state` [rows, E or D] and `tokens` [rows], the token before the one to be predicted. Outputs: `next_state`
    [rows, D], and [rows, count] candidates.
    """
    config, graph = checkpoint.config, GraphBuilder(precision)

    def weight(name: str) -> NDArray[np.float32]:
        return _float(checkpoint.tensors[stored_name(config, name)])

    width = config.emb_dim if stage == 0 else config.width
    state = graph.input("state", TensorProto.FLOAT, ["rows", width])
    tokens = graph.input("tokens", TensorProto.INT64, ["rows"])
    if stage == 0 and config.scale_input:
        state = graph.rms_norm(state, np.full(width, 1 / math.sqrt(2), np.float32), _NORM_EPSILON)
    ratio = config.embedding_weight / config.state_weight
    embedding = weight(f"emb.{stage}.weight")
    table = graph.matrix(ratio * fitted(embedding, read or len(embedding)), "emb")
    mixed = graph.node(
        "Add",
        [
            graph.linear(state, weight(f"proj.{stage}.weight"), "proj"),
            graph.node("Gather", [table, tokens])[0],
        ],
    )[0]
    normed = graph.rms_norm(mixed, weight(f"ln.{stage}.weight"), _NORM_EPSILON)
    shift = graph.constant(weight(f"ln.{stage}.bias"))
    following = graph.gelu(graph.node("Add", [normed, shift])[0])
    logits = graph.linear(following, _rows(weight(f"head.{stage}.weight"), kept), "head")
    return graph.model(
        {"next_state": following, **graph.candidates(logits, count, kept)}, f"mlp_speculator_{stage}"
    )


def build_medusa(
    checkpoint: MedusaCheckpoint,
    lm_head: NDArray[np.float32] | None,
    kept: NDArray[np.int64] | None,
    *,
    precision: Precision,
    count: int,
) -> onnx.ModelProto:
    """All heads, with the output rows `kept` (None: all).

    Input: `state` [rows, H]. Outputs: [heads, rows, count] candidates.

    `lm_head` is the target's output matrix [V, H], for heads that have none of their own.
    """
    config, graph = checkpoint.config, GraphBuilder(precision)
    state = graph.input("state", TensorProto.FLOAT, ["rows", hidden_size(checkpoint)])
    every = []
    for head in range(config.medusa_num_heads):
        value = state
        for block in range(config.medusa_num_layers):
            name = f"{head}.{block}.linear"
            weight, bias = (_float(checkpoint.tensors[f"{name}.{part}"]) for part in ("weight", "bias"))
            value = graph.node("Add", [value, graph.silu(graph.linear(value, weight, name, bias))])[0]
        name = output_name(config, head)
        output = lm_head if lm_head is not None else _float(checkpoint.tensors[name])
        logits = graph.linear(value, _rows(output, kept), "lm_head" if lm_head is not None else name)
        every.append(graph.node("Unsqueeze", [logits, graph.integers(0)])[0])
    stacked = graph.node("Concat", every, axis=0)[0]
    return graph.model(graph.candidates(stacked, count, kept), "medusa")


def _float(values: Array) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _rows(matrix: NDArray[np.float32], kept: NDArray[np.int64] | None) -> NDArray[np.float32]:
    return matrix if kept is None else matrix[kept]
