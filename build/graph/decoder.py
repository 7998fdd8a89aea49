"""What decoder layers of the Llama family are made of: paged attention, gated MLP, norms, fused projections.

Targets and EAGLE drafters are put together from these parts. Attention is one operator of our own domain,
`drafthouse::PagedAttention`, which the runner maps to the kernel of its backend (see `engine/openvino_graphs.py`).
Query and key heads are projected, normalised and rotated together, gate and up projection are one matrix: at batch 1
a small model's step is bound by the number of operators, not by arithmetic.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.nodes import Array, GraphBuilder
from build.targets.architecture import Architecture
from build.targets.rope import Rope
from engine.paged_attention import DOMAIN

Weights = Mapping[str, NDArray[np.float32]]
_HEADS, _GATED = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
_BATCH_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


def projections_of(layer: int) -> tuple[tuple[str, ...], ...]:
    """For each matrix of a target's layer the projections that are side by side in it."""
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    return (
        tuple(attention + name for name in _HEADS),
        (f"{attention}o_proj",),
        tuple(mlp + name for name in _GATED),
        (f"{mlp}down_proj",),
    )


class DecoderParts:
    """Adds parts of decoder layers to a graph, whose inputs `input_ids`, positions and paged batch it declares.

    Args:
        graph: what is added to.
        architecture: what the layers compute.
        weights: tensors by name, linear weights [out, in].
        max_positions: rows of the rotary tables.
        block_size: KV rows in a cache block.
    """

    def __init__(
        self,
        graph: GraphBuilder,
        architecture: Architecture,
        weights: Weights,
        *,
        max_positions: int,
        block_size: int,
    ) -> None:
        self._graph, self._arch, self._weights, self._block_size = graph, architecture, weights, block_size
        self.tokens = graph.input("input_ids", TensorProto.INT64, ["tokens"])
        self._declare_batch()
        self._rotations = self._rotary_tables(max_positions)

    def norm(self, value: str, name: str) -> str:
        """The RMS norm of that name."""
        return self._graph.rms_norm(value, self._norm_weight(name), self._arch.rms_norm_eps)

    def linear(self, value: str, *names: str) -> str:
        """One matrix product for all named projections, whose outputs stand side by side."""
        weight = np.concatenate([self._weights[f"{name}.weight"] for name in names])
        biases = [self._weights.get(f"{name}.bias") for name in names]
        bias = (
            np.concatenate([b for b in biases if b is not None])
            if any(b is not None for b in biases)
            else None
        )
        return self._graph.layer(value, weight, "+".join(names), bias)

    def feed_forward(self, value: str, prefix: str) -> str:
        """`down(activation(gate) * up)`, of the tensors that begin with `prefix`."""
        graph, inner = self._graph, self._arch.intermediate_size
        both = self.linear(value, *(prefix + name for name in _GATED))
        gate, up = graph.node("Split", [both, graph.integers(inner, inner)], 2, axis=1)
        activation = {"silu": graph.silu, "gelu_tanh": graph.gelu_tanh}[self._arch.activation]
        return self.linear(graph.node("Mul", [activation(gate), up])[0], f"{prefix}down_proj")

    def attention(self, value: str, layer: int, prefix: str) -> str:
        """Heads [tokens, heads * head size] before the output projection, of the tensors that begin with `prefix`."""
        graph, arch = self._graph, self._arch
        query_width, kv_width = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        projected = self.linear(value, *(prefix + name for name in _HEADS))
        sizes = graph.integers(query_width + kv_width, kv_width)
        heads, values = graph.node("Split", [projected, sizes], 2, axis=1)
        if arch.qk_norm:
            heads = self._normalise_heads(heads, prefix)
        rope = arch.rope_of(layer)
        if rope is not None:
            heads = self._rotate(heads, *self._rotations[rope])
        queries, keys = graph.node("Split", [heads, graph.integers(query_width, kv_width)], 2, axis=1)
        return graph.node(
            "PagedAttention",
            [queries, keys, values, *self._caches(layer), *self._batch],
            domain=DOMAIN,
            scale=float(arch.softmax_scale),
            sliding_window=(arch.sliding_window or 0) if layer in arch.sliding_layers else 0,
            kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
        )[0]

    def _declare_batch(self) -> None:
        graph = self._graph
        self._batch = [graph.input(name, TensorProto.INT32, [name]) for name in _BATCH_INPUTS]
        self._batch.append(graph.input("max_context_len", TensorProto.INT32, []))
        self._batch.append(graph.input("attention_rows", TensorProto.INT64, ["attention_rows"]))
        self._batch.append(graph.input("token_rows", TensorProto.INT64, ["tokens"]))

    def _rotary_tables(self, max_positions: int) -> dict[Rope, tuple[str, str]]:
        """Of every rotary embedding cos and sin of each token's position, [tokens, 1, 1, head_dim]."""
        positions = self._graph.input("position_ids", TensorProto.INT64, ["tokens"])
        ropes = [rope for rope in (self._arch.rope, self._arch.sliding_rope) if rope is not None]
        return {rope: self._rotary_table(rope, positions, max_positions) for rope in ropes}

    def _rotary_table(self, rope: Rope, positions: str, max_positions: int) -> tuple[str, str]:
        graph = self._graph
        frequencies = rope.inverse_frequencies(self._arch.head_dim)
        angles = np.outer(np.arange(max_positions, dtype=np.float64), frequencies)
        angles = np.concatenate([angles, angles], axis=1)

        def rows(table: Array) -> str:
            scaled = (table * rope.attention_scaling).astype(np.float32)
            picked = graph.node("Gather", [graph.constant(scaled), positions])[0]
            return graph.node("Unsqueeze", [picked, graph.integers(1, 2)])[0]

        return rows(np.cos(angles)), rows(np.sin(angles))

    def _norm_weight(self, name: str) -> Array:
        weight, offset = self._weights[f"{name}.weight"], self._arch.norm_offset
        return weight + np.float32(offset) if offset else weight

    def _caches(self, layer: int) -> list[str]:
        shape: list[int | str] = ["blocks", self._arch.num_kv_heads, self._block_size, self._arch.head_dim]
        kinds = ("key_cache", "value_cache")
        return [self._graph.input(f"{kind}.{layer}", TensorProto.FLOAT, shape) for kind in kinds]

    def _normalise_heads(self, heads: str, prefix: str) -> str:
        """RMS norm of each query and key head, with one weight for each of the two kinds."""
        graph, arch = self._graph, self._arch
        counts = (arch.num_heads, arch.num_kv_heads)
        weights = [self._norm_weight(f"{prefix}{name}") for name in ("q_norm", "k_norm")]
        weight = np.concatenate(
            [np.tile(one, (count, 1)) for one, count in zip(weights, counts, strict=True)]
        )
        split = graph.node("Reshape", [heads, graph.integers(-1, sum(counts), arch.head_dim)])[0]
        return self._flatten_heads(graph.rms_norm(split, weight, arch.rms_norm_eps))

    def _rotate(self, heads: str, cosine: str, sine: str) -> str:
        """Rotary embedding of all query and key heads at once, in the shape that OpenVINO fuses.

        Its pattern wants rank 4, the two halves from one split, and a concatenation over axis -1.
        """
        graph, half = self._graph, self._arch.head_dim // 2
        count = self._arch.num_heads + self._arch.num_kv_heads
        value = graph.node("Reshape", [heads, graph.integers(-1, count, 1, 2 * half)])[0]
        first, second = graph.node("Split", [value, graph.integers(half, half)], 2, axis=3)
        minus = graph.constant(np.full((1, 1, 1, 1), -1, np.float32), "minus_one")
        turned = graph.node("Concat", [graph.node("Mul", [second, minus])[0], first], axis=-1)[0]
        along, across = graph.node("Mul", [value, cosine])[0], graph.node("Mul", [turned, sine])[0]
        return self._flatten_heads(graph.node("Add", [along, across])[0])

    def _flatten_heads(self, value: str) -> str:
        width = (self._arch.num_heads + self._arch.num_kv_heads) * self._arch.head_dim
        return self._graph.node("Reshape", [value, self._graph.integers(-1, width)])[0]
