"""From a speculator's checkpoint to its ONNX graphs: what can be checked is, before the first one is built."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from build.graph.eagle import build_eagle, build_eagle3, build_eagle3_fusion
from build.graph.heads import build_medusa, build_mlp_stage
from build.targets.weights import Weights, load_weights
from build.vocabulary import fitted, is_padding
from deployments.engines import Precision
from deployments.speculation import AnySpeculation, Eagle, Eagle3, Medusa, MlpSpeculator, PEagle
from engine.methods import Trained, check_depth, tree_shape
from engine.runner import BLOCK_SIZE
from speculators.eagle import checkpoint as eagle
from speculators.eagle.checkpoint import EagleCheckpoint
from speculators.eagle3 import checkpoint as eagle3
from speculators.eagle3.config import AnyEagle3, Eagle3Config
from speculators.formats.checkpoint import Checkpoint
from speculators.formats.draft_vocabulary import read_draft_vocabulary
from speculators.formats.errors import CheckpointError
from speculators.formats.tensors import Array
from speculators.medusa import checkpoint as medusa
from speculators.mlp_speculator import checkpoint as mlp_speculator
from speculators.peagle import checkpoint as peagle

# More guesses than most trees need: finding them costs nothing, and saves compiling again for a wider tree.
_CANDIDATES = 10
# Four-bit weights lie at about a tenth of a row's length, unrelated rows at its square root of two and more. A few rows
# may differ: those of tokens that were added later.
_FOREIGN_DISTANCE, _FOREIGN_ROWS = 0.5, 0.01


@dataclass(frozen=True)
class DraftGraphs:
    """What a checkpoint is compiled to.

    Attributes:
        build: builds the graphs, by file name.
        order: file names in the order in which the method uses them.
        facts: more fields of the manifest.
    """

    build: Callable[[], Mapping[str, onnx.ModelProto]]
    order: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Target:
    """The target that a speculator is compiled for, and how it is compiled."""

    directory: Path
    weights: Weights
    precision: Precision
    max_sequence_length: int

    @property
    def vocab_size(self) -> int:
        return self.weights.architecture.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.weights.architecture.hidden_size

    @property
    def embedding(self) -> NDArray[np.float32]:
        return self.weights["model.embed_tokens.weight"]

    @property
    def lm_head(self) -> NDArray[np.float32]:
        architecture = self.weights.architecture
        head = self.embedding if architecture.tie_word_embeddings else self.weights["lm_head.weight"]
        return head / architecture.logits_divisor

    def check(self, speculation: Trained, widths: Mapping[str, int], vocabulary: int | None) -> None:
        """Refuse a checkpoint of another target; vocabularies may differ in padding."""
        for name, width in widths.items():
            if width != self.hidden_size:
                raise CheckpointError(
                    f"{speculation.checkpoint} is of another target: {name} is {width}, the target's hidden_size is "
                    f"{self.hidden_size}"
                )
        if vocabulary in (None, self.vocab_size) or is_padding(self.directory, vocabulary, self.vocab_size):
            return
        raise CheckpointError(
            f"{speculation.checkpoint} is of another target: it knows {vocabulary} tokens, the target "
            f"{self.vocab_size}, and the target's tokenizer has tokens that only one of them has"
        )


def plan_graphs(
    speculation: Trained, target: Path, *, precision: Precision, max_sequence_length: int
) -> DraftGraphs:
    """Read the section's checkpoint and check everything that decides whether it can be compiled and used.

    Raises:
        CheckpointError: it is missing, damaged, or that of another target.
        TargetError: the target cannot be read.
        EngineError: the section's tree is none, or deeper than the checkpoint drafts.
    """
    compiled_for = _Target(target, load_weights(target), precision, max_sequence_length)
    planned = _COMPILED[type(speculation)].plan(speculation, compiled_for)
    shape = tree_shape(speculation, planned.facts.get("top_k"))
    check_depth(shape, planned.facts.get("levels"), speculation.checkpoint.name)
    return planned


def read_drafter(speculation: Trained) -> None:
    """Read the section's checkpoint without a target, as far as it can be checked so.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    _COMPILED[type(speculation)].read(speculation.checkpoint)


def trained_section(speculation: AnySpeculation) -> Trained | None:
    """The section, if its method has a checkpoint that is compiled to graphs."""
    return speculation if isinstance(speculation, Trained) else None


def _mlp_speculator(speculation: MlpSpeculator, target: _Target) -> DraftGraphs:
    checkpoint = mlp_speculator.load_checkpoint(speculation.checkpoint)
    config = checkpoint.config
    target.check(speculation, {"emb_dim": config.emb_dim}, config.vocab_size)
    kept = _drafted(speculation, config.vocab_size, target)
    drafted = config.vocab_size if kept is None else len(kept)
    count = _candidates(speculation, config.top_k_tokens_per_head, drafted)
    distinct = min(2, config.n_predict) if config.tie_weights else config.n_predict

    def build() -> Mapping[str, onnx.ModelProto]:
        return {
            f"stage.{stage}.onnx": build_mlp_stage(
                checkpoint, stage, kept, precision=target.precision, count=count, read=target.vocab_size
            )
            for stage in range(distinct)
        }

    order = tuple(f"stage.{min(stage, distinct - 1)}.onnx" for stage in range(config.n_predict))
    facts = {
        "candidates": count,
        "levels": config.n_predict,
        "top_k": tuple(config.top_k_tokens_per_head),
        "widths": (config.emb_dim, config.width),
    }
    return DraftGraphs(build, order, facts)


def _medusa(speculation: Medusa, target: _Target) -> DraftGraphs:
    every = medusa.load_checkpoint(speculation.checkpoint)
    checkpoint = medusa.first_heads(every, speculation.num_heads)
    width, vocabulary = medusa.hidden_size(checkpoint), medusa.vocab_size(checkpoint)
    target.check(speculation, {"width of the heads": width}, vocabulary)
    known = vocabulary or target.vocab_size
    kept = _drafted(speculation, known, target)
    count = _candidates(speculation, None, known if kept is None else len(kept))

    def build() -> Mapping[str, onnx.ModelProto]:
        lm_head = target.lm_head if vocabulary is None else None
        return {
            "heads.onnx": build_medusa(checkpoint, lm_head, kept, precision=target.precision, count=count)
        }

    facts = {"candidates": count, "levels": speculation.num_heads, "widths": (width,)}
    return DraftGraphs(build, ("heads.onnx",), facts)


def _eagle(speculation: Eagle, target: _Target) -> DraftGraphs:
    checkpoint = eagle.load_checkpoint(speculation.checkpoint)
    config = checkpoint.config
    target.check(speculation, {"hidden_size": config.hidden_size}, config.vocab_size)
    embedding = _embedding(speculation, checkpoint, target, is_frozen=True)
    count = _candidates(speculation, None, target.vocab_size)

    def build() -> Mapping[str, onnx.ModelProto]:
        graph = build_eagle(
            checkpoint,
            target.embedding if embedding is None else embedding,
            target.lm_head,
            precision=target.precision,
            count=count,
            max_positions=target.max_sequence_length,
            block_size=BLOCK_SIZE,
        )
        return {"drafter.onnx": graph}

    facts = {
        "candidates": count,
        "widths": (config.hidden_size, config.intermediate_size),
        "max_sequence_length": target.max_sequence_length,
    }
    return DraftGraphs(build, ("drafter.onnx",), facts)


def _eagle3(speculation: Eagle3, target: _Target) -> DraftGraphs:
    return _fused(speculation, eagle3.load_checkpoint(speculation.checkpoint), target)


def _peagle(speculation: PEagle, target: _Target) -> DraftGraphs:
    checkpoint = peagle.load_checkpoint(speculation.checkpoint)
    mask = checkpoint.config.mask_token_id
    if eagle.EMBEDDING not in checkpoint.tensors and mask >= target.vocab_size:
        raise CheckpointError(
            f"{speculation.checkpoint}: the mask token is {mask}, the target has {target.vocab_size} tokens, and there "
            f"is no {eagle.EMBEDDING}"
        )
    planned = _fused(speculation, checkpoint, target, most_read=mask)
    return replace(planned, facts={**planned.facts, "mask_token": mask})


def _fused(
    speculation: Eagle3 | PEagle, checkpoint: Checkpoint[AnyEagle3], target: _Target, *, most_read: int = 0
) -> DraftGraphs:
    """What reads features of the target; `most_read` is a token that is read, though it may be none of the target's."""
    config = checkpoint.config
    target.check(speculation, {"width of the features": config.feature_width}, config.vocab_size)
    output = _output(speculation, checkpoint, target)
    embedding = _embedding(
        speculation, checkpoint, target, is_frozen=not config.embed_requires_grad, most_read=most_read
    )
    count = _candidates(speculation, None, target.vocab_size if output is None else len(output))

    def build() -> Mapping[str, onnx.ModelProto]:
        head = target.lm_head if output is None else output
        graph = build_eagle3(
            Checkpoint(config, {**checkpoint.tensors, eagle3.OUTPUT: head}),
            target.embedding if embedding is None else embedding,
            precision=target.precision,
            count=count,
            max_positions=target.max_sequence_length,
            block_size=BLOCK_SIZE,
        )
        return {"drafter.onnx": graph, "fusion.onnx": build_eagle3_fusion(checkpoint)}

    facts = {
        "candidates": count,
        "widths": (config.hidden_size, config.feature_width, config.intermediate_size),
        "hidden_layers": _captured(speculation, config, target.weights.architecture.num_layers),
        "max_sequence_length": target.max_sequence_length,
    }
    return DraftGraphs(build, ("drafter.onnx", "fusion.onnx"), facts)


def _output(speculation: Eagle3 | PEagle, checkpoint: Checkpoint[AnyEagle3], target: _Target) -> Array | None:
    """The drafter's output matrix without rows that the target has not; None: it has none, and takes the target's."""
    config, own = checkpoint.config, checkpoint.tensors.get(eagle3.OUTPUT)
    if own is None:
        target.check(speculation, {"hidden_size": config.hidden_size}, None)
        return None
    highest = int(eagle3.target_ids(checkpoint).max())
    if config.has_vocabulary_map and highest >= target.vocab_size:
        raise CheckpointError(
            f"{speculation.checkpoint} is of another target: it drafts token {highest}, the target has "
            f"{target.vocab_size}"
        )
    return own if config.has_vocabulary_map else own[: target.vocab_size]


def _embedding(
    speculation: Eagle | Eagle3 | PEagle,
    checkpoint: EagleCheckpoint | Checkpoint[AnyEagle3],
    target: _Target,
    *,
    is_frozen: bool,
    most_read: int = 0,
) -> NDArray[np.float32] | None:
    """The token embedding that the drafter stores, as long as the target's, and up to `most_read`; None: it has none,
    and reads the target's.

    One that is as wide as the target's and was frozen in training is the target's, maybe in another precision, or the
    checkpoint is another target's.
    """
    config, own = checkpoint.config, checkpoint.tensors.get(eagle.EMBEDDING)
    if own is None:
        target.check(speculation, {"hidden_size": config.hidden_size}, None)
        return None
    own = own.astype(np.float32)
    if config.hidden_size == target.hidden_size and is_frozen:
        share = _foreign_share(own, target.embedding)
        if share > _FOREIGN_ROWS:
            raise CheckpointError(
                f"{speculation.checkpoint}: {eagle.EMBEDDING} is not the target's ({share:.0%} of its rows differ); "
                "the drafter was made for another target, or trained its embedding (an EAGLE-3 config says so by "
                "embed_requires_grad)"
            )
    return fitted(own, max(target.vocab_size, most_read + 1))


def _foreign_share(own: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Share of the rows that are further from the other's than any rounding or quantisation takes them."""
    shared = min(len(own), len(theirs))
    distance = np.linalg.norm(own[:shared] - theirs[:shared], axis=1)
    return float(np.mean(distance > _FOREIGN_DISTANCE * np.linalg.norm(theirs[:shared], axis=1)))


def _captured(speculation: Eagle3 | PEagle, config: Eagle3Config, num_layers: int) -> tuple[int, ...]:
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


def _drafted(speculation: Trained, known: int, target: _Target) -> NDArray[np.int64] | None:
    """Ids that heads propose, of those that they know; None: all."""
    kept = read_draft_vocabulary(speculation.checkpoint, known)
    if kept is None:
        return np.arange(target.vocab_size, dtype=np.int64) if known > target.vocab_size else None
    return kept[kept < target.vocab_size]


def _candidates(speculation: Trained, top_k: list[int] | None, vocabulary: int) -> int:
    return min(vocabulary, max(_CANDIDATES, tree_shape(speculation, top_k).most_children))


@dataclass(frozen=True)
class _Compiled:
    """How the checkpoint of a method is read, and what it is compiled to."""

    read: Callable[[Path], object]
    plan: Callable[[Any, _Target], DraftGraphs]


_COMPILED: Mapping[type[Trained], _Compiled] = {
    MlpSpeculator: _Compiled(mlp_speculator.load_checkpoint, _mlp_speculator),
    Medusa: _Compiled(medusa.load_checkpoint, _medusa),
    Eagle: _Compiled(eagle.load_checkpoint, _eagle),
    Eagle3: _Compiled(eagle3.load_checkpoint, _eagle3),
    PEagle: _Compiled(peagle.load_checkpoint, _peagle),
}
