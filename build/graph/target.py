"""The target as one ONNX graph over a ragged batch.

Inputs describe the tokens of a step, request after request without padding: `input_ids` and `position_ids`
[tokens]; the paged batch (`past_lens`, `subsequence_begins`, `block_indices`, `block_indices_begins`,
`max_context_len`); the token of each query row of attention (`attention_rows`, a token once for every branch of its
tree) and the query row whose output is a token's (`token_rows` [tokens]); the rows whose logits are wanted
(`logit_rows`); and two cache tensors per layer.

Outputs are `logits` [rows, V] and `hidden.0` .. `hidden.L` [tokens, H], numbered as in Transformers: what goes
into each layer, and last the state after the final norm. A runner asks for those that its speculator needs. A draft
model gives its likeliest token instead, of those that it may draft: `candidates` and `log_probs` [rows, 1].
"""

from collections.abc import Mapping, Set
from types import MappingProxyType

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from build.graph.decoder import DecoderParts, Weights
from build.graph.nodes import GraphBuilder
from build.targets.architecture import Architecture
from build.vocabulary import fitted
from deployments.engines import Precision

INPUT = "input."
_LACKING = -1e9


def build_target_graph(
    architecture: Architecture,
    weights: Weights,
    *,
    precision: Precision,
    max_positions: int,
    block_size: int,
    drafted: NDArray[np.int64] | None = None,
    vocab_size: int | None = None,
    rank: int = 0,
    squares: Mapping[str, NDArray[np.float64]] = MappingProxyType({}),
    eight_bits: Set[str] = frozenset(),
    shows_inputs: bool = False,
) -> onnx.ModelProto:
    """Build the graph.

    Args:
        architecture: what the model computes.
        weights: tensors by Hugging Face name, linear weights [out, in].
        precision: "int4" (layers in groups, the rest as int8), "int8" (per output channel) or "fp32".
        max_positions: rows of the rotary tables.
        block_size: KV rows in a cache block.
        drafted: ids that a draft model proposes; None: all.
        vocab_size: tokens that are read and scored, where a draft model's target is padded otherwise than the model:
            those that it lacks are rows of zeros and are never chosen.
        rank: of what is added to layers in int4 for what they lose (`build.graph.low_rank`); 0: nothing.
        squares: mean squares of the inputs of matrices of layers, by which that is weighed (`build.input_squares`).
        eight_bits: matrices of layers that are int8 where the others are int4 (`build.graph.mixed_bits`).
        shows_inputs: whether there are outputs [tokens, in] of what each matrix of layers is multiplied with, named
            `INPUT` and the matrix.
    """
    builder = GraphBuilder(precision, rank, squares, eight_bits)
    graph = _TargetGraph(architecture, weights, builder, vocab_size or architecture.vocab_size)
    return graph.build(max_positions, block_size, drafted, shows_inputs=shows_inputs)


class _TargetGraph:
    def __init__(
        self, architecture: Architecture, weights: Weights, graph: GraphBuilder, vocab_size: int
    ) -> None:
        self._arch = architecture
        self._weights = weights
        self._vocab_size = vocab_size
        self._graph = graph

    def build(
        self, max_positions: int, block_size: int, drafted: NDArray[np.int64] | None, *, shows_inputs: bool
    ) -> onnx.ModelProto:
        graph, arch = self._graph, self._arch
        self._parts = DecoderParts(
            graph, arch, self._weights, max_positions=max_positions, block_size=block_size
        )
        embedding = fitted(self._weights["model.embed_tokens.weight"], self._vocab_size)
        table = graph.matrix(embedding, "model.embed_tokens.weight")
        hidden = graph.multiply(
            graph.node("Gather", [table, self._parts.tokens])[0], arch.embedding_multiplier
        )
        states = [hidden]
        for layer in range(arch.num_layers):
            hidden = self._layer(hidden, layer)
            states.append(hidden)
        hidden = states[-1] = self._parts.norm(hidden, "model.norm")
        rows = graph.input("logit_rows", TensorProto.INT64, ["rows"])
        hidden = graph.node("Gather", [hidden, rows])[0]
        name = "model.embed_tokens.weight" if arch.tie_word_embeddings else "lm_head.weight"
        logits = graph.linear(hidden, fitted(self._weights[name], self._vocab_size), name)
        outputs = {f"hidden.{index}": state for index, state in enumerate(states)}
        if shows_inputs:
            outputs |= {INPUT + name: value for name, value in graph.inputs_of_layers.items()}
        outputs["logits"] = self._without_lacking(graph.multiply(logits, 1.0 / arch.logits_divisor))
        proposed = outputs["logits"]
        if drafted is not None:
            drafted = drafted[drafted < self._vocab_size]
            proposed = graph.linear(hidden, self._weights[name][drafted], "drafted_rows")
        return graph.model(outputs | graph.candidates(proposed, 1, drafted), arch.family)

    def _without_lacking(self, logits: str) -> str:
        """The scores, far below all others for tokens that the model has no row for."""
        if self._vocab_size <= self._arch.vocab_size:
            return logits
        mask = np.zeros(self._vocab_size, np.float32)
        mask[self._arch.vocab_size :] = _LACKING
        return self._graph.node("Add", [logits, self._graph.constant(mask, "lacking")])[0]

    def _layer(self, hidden: str, layer: int) -> str:
        parts, prefix, norms = self._parts, f"model.layers.{layer}.", self._arch.norms
        attended = parts.attention(
            parts.norm(hidden, f"{prefix}{norms.before_attention}"), layer, f"{prefix}self_attn."
        )
        output = parts.linear(attended, f"{prefix}self_attn.o_proj")
        hidden = self._joined(hidden, output, prefix, norms.after_attention)
        output = parts.feed_forward(parts.norm(hidden, f"{prefix}{norms.before_mlp}"), f"{prefix}mlp.")
        return self._joined(hidden, output, prefix, norms.after_mlp)

    def _joined(self, hidden: str, output: str, prefix: str, norm: str | None) -> str:
        """The residual stream with the output of a branch, which a norm of that name may follow."""
        if norm is not None:
            output = self._parts.norm(output, f"{prefix}{norm}")
        scaled = self._graph.multiply(output, self._arch.residual_multiplier)
        return self._graph.node("Add", [hidden, scaled])[0]
