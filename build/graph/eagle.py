"""EAGLE drafters as ONNX graphs over the paged batch of a target.

Beside the paged batch (see `build.graph.target`) a drafter reads `hidden` [tokens, H]: for each token the hidden
state of the position before it, the target's or while drafting its own. Outputs, for the rows that `logit_rows`
names, are [rows, count] candidates and `next_hidden` [rows, H], what is fed back. EAGLE-3 has a second graph that
fuses the target's features into such a hidden state, once for each token that was emitted; P-EAGLE's gives that of its
mask behind them. What they compute is written down in `model` of `speculators.eagle`, `eagle3` and `peagle`.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.decoder import DecoderParts, Weights
from build.graph.nodes import GraphBuilder
from build.targets.architecture import Architecture
from build.targets.rope import Rope, parse_scaling
from deployments.engines import Precision
from speculators.eagle.checkpoint import EagleCheckpoint
from speculators.eagle.config import LlamaDrafterConfig
from speculators.eagle3.checkpoint import DRAFT_TO_TARGET, TARGET_TO_DRAFT, target_ids
from speculators.eagle3.config import AnyEagle3
from speculators.formats.checkpoint import Checkpoint
from speculators.peagle.checkpoint import MASK_HIDDEN


def build_eagle(
    checkpoint: EagleCheckpoint,
    embedding: NDArray[np.float32],
    lm_head: NDArray[np.float32],
    *,
    precision: Precision,
    count: int,
    max_positions: int,
    block_size: int,
) -> onnx.ModelProto:
    """EAGLE-1; embedding and output matrix, [V, H] each, are the target's."""
    weights = _floats(checkpoint.tensors)
    architecture = _architecture(checkpoint.config, checkpoint.config.num_hidden_layers)
    graph = GraphBuilder(precision)
    parts = DecoderParts(graph, architecture, weights, max_positions=max_positions, block_size=block_size)
    hidden, embedded = _inputs(graph, parts, embedding)
    values = parts.linear(graph.node("Concat", [embedded, hidden], axis=1)[0], "fc")
    for layer in range(architecture.num_layers):
        prefix = f"layers.{layer}."
        normed = parts.norm(values, f"{prefix}input_layernorm") if layer else values
        attended = parts.attention(normed, layer, f"{prefix}self_attn.")
        values = _finish_layer(graph, parts, values, attended, prefix)
    values = _wanted_rows(graph, values)
    return _model(graph, values, graph.linear(values, lm_head, "lm_head"), count, None)


def build_eagle3(
    checkpoint: Checkpoint[AnyEagle3],
    embedding: NDArray[np.float32],
    *,
    precision: Precision,
    count: int,
    max_positions: int,
    block_size: int,
) -> onnx.ModelProto:
    """EAGLE-3 or P-EAGLE; the embedding [V, H] is the target's or the checkpoint's own."""
    config, weights = checkpoint.config, _floats(checkpoint.tensors)
    architecture = _architecture(config, config.num_hidden_layers, qk_norm=config.qk_norm)
    first = "layers.0." if config.in_parallel else "midlayer."
    graph = GraphBuilder(precision)
    parts = DecoderParts(graph, architecture, weights, max_positions=max_positions, block_size=block_size)
    hidden, embedded = _inputs(graph, parts, embedding)
    normed = parts.norm(hidden, f"{first}hidden_norm")
    joined = graph.node("Concat", [parts.norm(embedded, f"{first}input_layernorm"), normed], axis=1)[0]
    attended = parts.attention(joined, 0, f"{first}self_attn.")
    residual = normed if config.norm_before_residual else hidden
    values = _finish_layer(graph, parts, residual, attended, first)
    for layer in range(1, architecture.num_layers):
        prefix = f"layers.{layer}."
        attended = parts.attention(
            parts.norm(values, f"{prefix}input_layernorm"), layer, f"{prefix}self_attn."
        )
        values = _finish_layer(graph, parts, values, attended, prefix)
    values = _wanted_rows(graph, values)
    ids = target_ids(checkpoint) if config.has_vocabulary_map else None
    output = parts.norm(values, "norm")
    fed_back = output if config.norm_output else values
    return _model(graph, fed_back, parts.linear(output, "lm_head"), count, ids)


def build_eagle3_fusion(checkpoint: Checkpoint[AnyEagle3]) -> onnx.ModelProto:
    """Input `features` [rows, layers * T], hidden states of the target from its low layer to its high one; output
    `hidden` [rows, H], and a row more with what stands for it at P-EAGLE's mask.

    It stays in fp32: single columns of hidden states are a thousand times the others, which no scale of a row or a
    group of activations can hold together, and the matrix is small.
    """
    weights, graph, config = _floats(checkpoint.tensors), GraphBuilder("fp32"), checkpoint.config
    weight = weights["fc.weight"]
    features = graph.input("features", TensorProto.FLOAT, ["rows", weight.shape[1]])
    if config.in_parallel:
        mask = graph.constant(weights[MASK_HIDDEN].reshape(1, -1), MASK_HIDDEN)
        features = graph.node("Concat", [features, mask], axis=0)[0]
    if config.norm_before_fc:
        features = graph.rms_norm(features, weights["input_norm.weight"], config.rms_norm_eps)
    if config.fc_norm:
        count = config.num_features
        parts = graph.node(
            "Split", [features, graph.integers(*[config.feature_width] * count)], count, axis=1
        )
        normed = [
            graph.rms_norm(part, weights[f"fc_norm.{feature}.weight"], config.rms_norm_eps)
            for feature, part in enumerate(parts)
        ]
        features = graph.node("Concat", normed, axis=1)[0]
    return graph.model(
        {"hidden": graph.linear(features, weight, "fc", weights.get("fc.bias"))}, "eagle3_fusion"
    )


def _architecture(config: LlamaDrafterConfig, num_layers: int, *, qk_norm: bool = False) -> Architecture:
    """The drafter's layers, whatever family and class its config names (drafters have rules of their own)."""
    return Architecture(
        family="eagle",
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=num_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.key_value_heads,
        head_dim=config.head_width,
        intermediate_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope=Rope(config.rope_theta, parse_scaling(config.rope_scaling, config.max_position_embeddings)),
        qk_norm=qk_norm,
    )


def _inputs(graph: GraphBuilder, parts: DecoderParts, embedding: NDArray[np.float32]) -> tuple[str, str]:
    hidden = graph.input("hidden", TensorProto.FLOAT, ["tokens", embedding.shape[1]])
    table = graph.matrix(embedding, "embed_tokens")
    return hidden, graph.node("Gather", [table, parts.tokens])[0]


def _finish_layer(graph: GraphBuilder, parts: DecoderParts, residual: str, attended: str, prefix: str) -> str:
    values = graph.node("Add", [residual, parts.linear(attended, f"{prefix}self_attn.o_proj")])[0]
    normed = parts.norm(values, f"{prefix}post_attention_layernorm")
    return graph.node("Add", [values, parts.feed_forward(normed, f"{prefix}mlp.")])[0]


def _wanted_rows(graph: GraphBuilder, values: str) -> str:
    return graph.node("Gather", [values, graph.input("logit_rows", TensorProto.INT64, ["rows"])])[0]


def _model(
    graph: GraphBuilder, values: str, logits: str, count: int, ids: NDArray[np.int64] | None
) -> onnx.ModelProto:
    return graph.model({"next_hidden": values, **graph.candidates(logits, count, ids)}, "eagle")


def _floats(tensors: dict[str, NDArray[Any]]) -> Weights:
    maps = (DRAFT_TO_TARGET, TARGET_TO_DRAFT)
    return {name: values.astype(np.float32) for name, values in tensors.items() if name not in maps}
