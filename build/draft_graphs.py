"""From a speculator's checkpoint to its ONNX graphs, after checking that it is one of this target's."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from build.graph.eagle import build_eagle, build_eagle3, build_eagle3_fusion
from build.graph.heads import build_medusa, build_mlp_stage
from build.targets.weights import Weights, load_weights
from deployments.speculation import Eagle, Eagle3, Medusa, MlpSpeculator
from engine.runner import BLOCK_SIZE
from engine.tree_shapes import Trained, tree_shape
from speculators.eagle import checkpoint as eagle
from speculators.eagle3 import checkpoint as eagle3
from speculators.eagle3.config import Eagle3Config
from speculators.formats.draft_vocabulary import read_draft_vocabulary
from speculators.formats.errors import CheckpointError
from speculators.medusa import checkpoint as medusa
from speculators.mlp_speculator import checkpoint as mlp_speculator

# More guesses than most trees need: finding them costs nothing, and saves compiling again for a wider tree.
_CANDIDATES = 10


@dataclass(frozen=True)
class DraftGraphs:
    """What a checkpoint is compiled to.

    Attributes:
        graphs: by file name.
        order: file names in the order in which the method uses them.
        facts: more fields of the manifest.
    """

    graphs: Mapping[str, onnx.ModelProto]
    order: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


def build_graphs(
    speculation: Trained, target: Path, *, precision: str, max_sequence_length: int
) -> DraftGraphs:
    """Read the section's checkpoint and build its graphs.

    Raises:
        CheckpointError: it is missing, damaged, or that of another target.
        TargetError: the target cannot be read.
        EngineError: the section's tree is none.
    """
    weights = load_weights(target)
    if isinstance(speculation, MlpSpeculator):
        return _mlp_speculator(speculation, weights, precision)
    if isinstance(speculation, Medusa):
        return _medusa(speculation, weights, precision)
    if isinstance(speculation, Eagle):
        return _eagle(speculation, weights, precision, max_sequence_length)
    return _eagle3(speculation, weights, precision, max_sequence_length)


def _mlp_speculator(speculation: MlpSpeculator, weights: Weights, precision: str) -> DraftGraphs:
    checkpoint = mlp_speculator.load_checkpoint(speculation.checkpoint)
    config = checkpoint.config
    _check_target(speculation, weights, {"emb_dim": config.emb_dim}, config.vocab_size)
    kept = read_draft_vocabulary(speculation.checkpoint, config.vocab_size)
    drafted = config.vocab_size if kept is None else len(kept)
    count = _candidates(speculation, config.top_k_tokens_per_head, drafted)
    distinct = min(2, config.n_predict) if config.tie_weights else config.n_predict
    graphs = {
        f"stage.{stage}.onnx": build_mlp_stage(checkpoint, stage, kept, precision=precision, count=count)
        for stage in range(distinct)
    }
    order = tuple(f"stage.{min(stage, distinct - 1)}.onnx" for stage in range(config.n_predict))
    facts = {
        "candidates": count,
        "levels": config.n_predict,
        "top_k": tuple(config.top_k_tokens_per_head),
        "widths": (config.emb_dim, config.width),
    }
    return DraftGraphs(graphs, order, facts)


def _medusa(speculation: Medusa, weights: Weights, precision: str) -> DraftGraphs:
    every = medusa.load_checkpoint(speculation.checkpoint)
    checkpoint = medusa.first_heads(every, speculation.num_heads)
    width, vocabulary = medusa.hidden_size(checkpoint), medusa.vocab_size(checkpoint)
    _check_target(speculation, weights, {"width of the heads": width}, vocabulary)
    lm_head = _lm_head(weights) if vocabulary is None else None
    known = weights.architecture.vocab_size
    kept = read_draft_vocabulary(speculation.checkpoint, known)
    count = _candidates(speculation, None, known if kept is None else len(kept))
    graph = build_medusa(checkpoint, lm_head, kept, precision=precision, count=count)
    facts = {"candidates": count, "levels": speculation.num_heads, "widths": (width,)}
    return DraftGraphs({"heads.onnx": graph}, ("heads.onnx",), facts)


def _eagle(speculation: Eagle, weights: Weights, precision: str, max_sequence_length: int) -> DraftGraphs:
    checkpoint = eagle.load_checkpoint(speculation.checkpoint)
    config = checkpoint.config
    _check_target(speculation, weights, {"hidden_size": config.hidden_size}, config.vocab_size)
    count = _candidates(speculation, None, config.vocab_size)
    graph = build_eagle(
        checkpoint,
        weights["model.embed_tokens.weight"],
        _lm_head(weights),
        precision=precision,
        count=count,
        max_positions=max_sequence_length,
        block_size=BLOCK_SIZE,
    )
    facts = {
        "candidates": count,
        "widths": (config.hidden_size, config.intermediate_size),
        "max_sequence_length": max_sequence_length,
    }
    return DraftGraphs({"drafter.onnx": graph}, ("drafter.onnx",), facts)


def _eagle3(speculation: Eagle3, weights: Weights, precision: str, max_sequence_length: int) -> DraftGraphs:
    checkpoint = eagle3.load_checkpoint(speculation.checkpoint)
    config = checkpoint.config
    _check_target(speculation, weights, {"width of the features": config.feature_width}, config.vocab_size)
    embedding = checkpoint.tensors.get(eagle.EMBEDDING)
    if embedding is None:
        _check_target(speculation, weights, {"hidden_size": config.hidden_size}, config.vocab_size)
        embedding = weights["model.embed_tokens.weight"]
    count = _candidates(speculation, None, config.output_size)
    graphs = {
        "drafter.onnx": build_eagle3(
            checkpoint,
            embedding,
            precision=precision,
            count=count,
            max_positions=max_sequence_length,
            block_size=BLOCK_SIZE,
        ),
        "fusion.onnx": build_eagle3_fusion(checkpoint),
    }
    facts = {
        "candidates": count,
        "widths": (config.hidden_size, config.feature_width, config.intermediate_size),
        "hidden_layers": _captured(speculation, config, weights.architecture.num_layers),
        "max_sequence_length": max_sequence_length,
    }
    return DraftGraphs(graphs, tuple(graphs), facts)


def _captured(speculation: Eagle3, config: Eagle3Config, num_layers: int) -> tuple[int, ...]:
    """Hidden states that are read; spec and checkpoint name the layers that they come out of.

    Without either, those that the EAGLE repository takes.
    """
    named = speculation.layers_to_capture or config.target_layers
    layers = (1, num_layers // 2 - 1, num_layers - 4) if named is None else tuple(named)
    if len(layers) != config.num_features or not all(0 <= layer < num_layers - 1 for layer in layers):
        raise CheckpointError(
            f"{speculation.checkpoint} reads {config.num_features} layers of its target, which has {num_layers}; "
            f"{list(layers)} are not such layers (speculation.layers_to_capture names others)"
        )
    return tuple(layer + 1 for layer in layers)


def _candidates(speculation: Trained, top_k: list[int] | None, vocabulary: int) -> int:
    return min(vocabulary, max(_CANDIDATES, tree_shape(speculation, top_k).most_children))


def _check_target(
    speculation: Trained, weights: Weights, widths: Mapping[str, int], vocabulary: int | None
) -> None:
    architecture = weights.architecture
    for name, width in widths.items():
        if width != architecture.hidden_size:
            raise CheckpointError(
                f"{speculation.checkpoint} is of another target: {name} is {width}, the target's hidden_size is "
                f"{architecture.hidden_size}"
            )
    if vocabulary is not None and vocabulary != architecture.vocab_size:
        raise CheckpointError(
            f"{speculation.checkpoint} is of another target: it knows {vocabulary} tokens, the target "
            f"{architecture.vocab_size}"
        )


def _lm_head(weights: Weights) -> Any:
    architecture = weights.architecture
    tied = architecture.tie_word_embeddings
    return weights["model.embed_tokens.weight" if tied else "lm_head.weight"] / architecture.logits_divisor
