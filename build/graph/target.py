"""The Llama-family target as one ONNX graph over a ragged batch.

Inputs describe the tokens of a step, request after request without padding: `input_ids` and `position_ids`
[tokens]; the paged batch (`past_lens`, `subsequence_begins`, `block_indices`, `block_indices_begins`,
`max_context_len`); the ancestor masks of token trees (`qq_bias`, `qq_bias_begins`); the rows whose logits are
wanted (`logit_rows`); and two cache tensors per layer. Attention is one operator of our own domain,
`drafthouse::PagedAttention`, which the runner maps to the kernel of its backend (see
`engine/openvino_runner.py`). Query and key heads are projected, normalised and rotated together, gate and up
projection are one matrix: at batch 1 a small model's step is bound by the number of operators, not by
arithmetic.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.nodes import DOMAIN, Array, GraphBuilder
from build.targets.architecture import Architecture

Weights = Mapping[str, NDArray[np.float32]]
_BATCH_INPUTS = ("past_lens", "subsequence_begins", "block_indices", "block_indices_begins")


def build_target_graph(
    architecture: Architecture, weights: Weights, *, precision: str, max_positions: int, block_size: int
) -> onnx.ModelProto:
    """Build the graph.

    Args:
        architecture: what the model computes.
        weights: tensors by Hugging Face name, linear weights [out, in].
        precision: "int8" (weights per output channel) or "fp32".
        max_positions: rows of the rotary tables.
        block_size: KV rows in a cache block.
    """
    graph = _TargetGraph(architecture, weights, precision == "int8")
    return graph.build(max_positions, block_size)


class _TargetGraph:
    def __init__(self, architecture: Architecture, weights: Weights, quantize: bool) -> None:
        self._arch = architecture
        self._weights = weights
        self._graph = GraphBuilder(quantize=quantize)

    def build(self, max_positions: int, block_size: int) -> onnx.ModelProto:
        graph, arch = self._graph, self._arch
        ids = graph.input("input_ids", TensorProto.INT64, ["tokens"])
        self._declare_batch()
        self._rotation = self._rotary_tables(max_positions)
        table = graph.matrix(self._weights["model.embed_tokens.weight"], "model.embed_tokens.weight")
        hidden = graph.multiply(graph.node("Gather", [table, ids])[0], arch.embedding_multiplier)
        for layer in range(arch.num_layers):
            hidden = self._layer(hidden, layer, block_size)
        hidden = graph.rms_norm(hidden, self._weights["model.norm.weight"], arch.rms_norm_eps)
        rows = graph.input("logit_rows", TensorProto.INT64, ["rows"])
        hidden = graph.node("Gather", [hidden, rows])[0]
        name = "model.embed_tokens.weight" if arch.tie_word_embeddings else "lm_head.weight"
        logits = graph.linear(hidden, self._weights[name], name)
        return graph.model({"logits": graph.multiply(logits, 1.0 / arch.logits_divisor)}, arch.family)

    def _declare_batch(self) -> None:
        graph = self._graph
        self._batch = [graph.input(name, TensorProto.INT32, [name]) for name in _BATCH_INPUTS]
        self._batch.append(graph.input("max_context_len", TensorProto.INT32, []))
        self._batch.append(graph.input("qq_bias", TensorProto.UINT8, ["qq_bias"]))
        self._batch.append(graph.input("qq_bias_begins", TensorProto.INT32, ["qq_bias_begins"]))

    def _rotary_tables(self, max_positions: int) -> tuple[str, str]:
        """cos and sin of each token's position, [tokens, 1, 1, head_dim]."""
        graph, arch = self._graph, self._arch
        positions = graph.input("position_ids", TensorProto.INT64, ["tokens"])
        angles = np.outer(np.arange(max_positions, dtype=np.float64), arch.inverse_frequencies())
        angles = np.concatenate([angles, angles], axis=1)

        def rows(table: Array) -> str:
            scaled = (table * arch.attention_scaling).astype(np.float32)
            picked = graph.node("Gather", [graph.constant(scaled), positions])[0]
            return graph.node("Unsqueeze", [picked, graph.integers(1, 2)])[0]

        return rows(np.cos(angles)), rows(np.sin(angles))

    def _layer(self, hidden: str, layer: int, block_size: int) -> str:
        graph, arch, prefix = self._graph, self._arch, f"model.layers.{layer}."
        normed = graph.rms_norm(hidden, self._weights[f"{prefix}input_layernorm.weight"], arch.rms_norm_eps)
        attended = self._attention(normed, layer, block_size)
        output = self._linear(attended, f"{prefix}self_attn.o_proj")
        hidden = graph.node("Add", [hidden, graph.multiply(output, arch.residual_multiplier)])[0]
        weight = self._weights[f"{prefix}post_attention_layernorm.weight"]
        output = self._feed_forward(graph.rms_norm(hidden, weight, arch.rms_norm_eps), f"{prefix}mlp.")
        return graph.node("Add", [hidden, graph.multiply(output, arch.residual_multiplier)])[0]

    def _feed_forward(self, value: str, prefix: str) -> str:
        graph, inner = self._graph, self._arch.intermediate_size
        both = self._linear(value, f"{prefix}gate_proj", f"{prefix}up_proj")
        gate, up = graph.node("Split", [both, graph.integers(inner, inner)], 2, axis=1)
        gated = graph.node("Mul", [gate, graph.node("Sigmoid", [gate])[0]])[0]
        return self._linear(graph.node("Mul", [gated, up])[0], f"{prefix}down_proj")

    def _attention(self, value: str, layer: int, block_size: int) -> str:
        graph, arch, prefix = self._graph, self._arch, f"model.layers.{layer}.self_attn."
        query_width, kv_width = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        projected = self._linear(value, f"{prefix}q_proj", f"{prefix}k_proj", f"{prefix}v_proj")
        sizes = graph.integers(query_width + kv_width, kv_width)
        heads, values = graph.node("Split", [projected, sizes], 2, axis=1)
        if arch.qk_norm:
            heads = self._normalise_heads(heads, prefix)
        if layer not in arch.no_rope_layers:
            heads = self._rotate(heads)
        queries, keys = graph.node("Split", [heads, graph.integers(query_width, kv_width)], 2, axis=1)
        return graph.node(
            "PagedAttention",
            [queries, keys, values, *self._caches(layer, block_size), *self._batch],
            domain=DOMAIN,
            scale=float(arch.softmax_scale),
            sliding_window=(arch.sliding_window or 0) if layer in arch.sliding_layers else 0,
            kv_heads=arch.num_kv_heads,
            head_dim=arch.head_dim,
        )[0]

    def _caches(self, layer: int, block_size: int) -> list[str]:
        shape: list[int | str] = ["blocks", self._arch.num_kv_heads, block_size, self._arch.head_dim]
        kinds = ("key_cache", "value_cache")
        return [self._graph.input(f"{kind}.{layer}", TensorProto.FLOAT, shape) for kind in kinds]

    def _normalise_heads(self, heads: str, prefix: str) -> str:
        """Qwen3: RMS norm of each query and key head, with one weight for each of the two kinds."""
        graph, arch = self._graph, self._arch
        counts = (arch.num_heads, arch.num_kv_heads)
        names = (f"{prefix}q_norm.weight", f"{prefix}k_norm.weight")
        weight = np.concatenate(
            [np.tile(self._weights[name], (count, 1)) for name, count in zip(names, counts, strict=True)]
        )
        split = graph.node("Reshape", [heads, graph.integers(-1, sum(counts), arch.head_dim)])[0]
        return self._flatten_heads(graph.rms_norm(split, weight, arch.rms_norm_eps))

    def _rotate(self, heads: str) -> str:
        """Rotary embedding of all query and key heads at once, in the shape that OpenVINO fuses.

        Its pattern wants rank 4, the two halves from one split, and a concatenation over axis -1.
        """
        graph, half = self._graph, self._arch.head_dim // 2
        cosine, sine = self._rotation
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

    def _linear(self, value: str, *names: str) -> str:
        """One matrix product for all named projections, whose outputs stand side by side."""
        weight = np.concatenate([self._weights[f"{name}.weight"] for name in names])
        biases = [self._weights.get(f"{name}.bias") for name in names]
        bias = (
            np.concatenate([b for b in biases if b is not None])
            if any(b is not None for b in biases)
            else None
        )
        return self._graph.linear(value, weight, "+".join(names), bias)
