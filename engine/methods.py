"""The methods that the embedded engine runs: all that this room knows of each, in one table.

A method without weights needs no entry here: it is in `speculators.registry`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.speculation import Eagle, Eagle3, Medusa, MlpSpeculator
from engine.backend import Backend
from engine.block_graph import BlockGraph
from engine.manifest import SpeculatorManifest
from engine.tree_shapes import eagle3_shape, eagle_shape, medusa_shape, mlp_shape
from speculators.base import Requirements, Speculator
from speculators.eagle.draft import EagleDrafter
from speculators.growth import TreeShape
from speculators.medusa.draft import MedusaDrafter
from speculators.mlp_speculator.draft import MlpDrafter
from speculators.registry import METHODS, settings_of

Trained = MlpSpeculator | Medusa | Eagle | Eagle3


@dataclass(frozen=True, slots=True)
class TrainedParts:
    """What a trained speculator is opened from.

    Attributes:
        manifest: of its graphs.
        files: the graphs, in the manifest's order.
        shape: of its trees.
        slots: most requests at once.
        num_blocks: cache blocks of the target; a drafter with a KV cache has as many, numbered alike.
        backend: what runs the graphs.
    """

    manifest: SpeculatorManifest
    files: Sequence[Path]
    shape: TreeShape
    slots: int
    num_blocks: int
    backend: Backend


@dataclass(frozen=True, slots=True)
class TrainedMethod:
    """A method whose graphs `build.drafters` compiles.

    Attributes:
        settings: keys of its section that are read.
        shape: of its trees; see `engine.tree_shapes`.
        required: what it needs, by the shape of its trees and the hidden states that its manifest names.
        open: loads its graphs.
    """

    settings: tuple[str, ...]
    shape: Callable[[Any, Sequence[int] | None], TreeShape]
    required: Callable[[TreeShape, tuple[int, ...]], Requirements]
    open: Callable[[TrainedParts], Speculator]


def _open_mlp(parts: TrainedParts) -> Speculator:
    # Tied stages are there several times.
    stages = {file: parts.backend.plain(file, parts.manifest) for file in parts.files}
    return MlpDrafter([stages[file] for file in parts.files], parts.shape)


def _open_medusa(parts: TrainedParts) -> Speculator:
    return MedusaDrafter(parts.backend.plain(parts.files[0], parts.manifest), parts.shape)


def _open_eagle(parts: TrainedParts) -> Speculator:
    manifest, shape, backend = parts.manifest, parts.shape, parts.backend
    outputs = ("candidates", "log_probs", "next_hidden")
    # At every level of a tree all nodes that went on are run again, each of them maybe a branch over two blocks.
    branches = 0 if shape.most_children == 1 else (shape.width or shape.total) * shape.depth
    graph = backend.paged(
        parts.files[0],
        manifest,
        outputs=outputs,
        num_blocks=parts.num_blocks,
        branch_blocks=2 * parts.slots * branches,
    )
    fusion = backend.plain(parts.files[1], manifest) if len(parts.files) > 1 else None
    cached = BlockGraph(graph, outputs, parts.num_blocks)
    return EagleDrafter(manifest.method, cached, fusion, shape, manifest.hidden_layers)


TRAINED: Mapping[str, TrainedMethod] = {
    "mlp_speculator": TrainedMethod(
        ("checkpoint", "draft_length", "candidates"), mlp_shape, MlpDrafter.required, _open_mlp
    ),
    "medusa": TrainedMethod(
        ("checkpoint", "num_heads", "choices"), medusa_shape, MedusaDrafter.required, _open_medusa
    ),
    "eagle": TrainedMethod(
        ("checkpoint", "depth", "max_draft_tokens", "max_non_leaves", "choices"),
        eagle_shape,
        EagleDrafter.required,
        _open_eagle,
    ),
    "eagle3": TrainedMethod(
        ("checkpoint", "draft_length", "dynamic_tree", "layers_to_capture", "suffix_automaton"),
        eagle3_shape,
        EagleDrafter.required,
        _open_eagle,
    ),
}
DRAFT_MODEL = "draft_model"
"""A target of its own: no method of `TRAINED`, since its manifest is that of an engine."""

EMBEDDED_SETTINGS: Mapping[str, tuple[str, ...]] = {
    **{method: settings_of(method) for method in METHODS},
    DRAFT_MODEL: ("model", "draft_length", "precision"),
    **{name: method.settings for name, method in TRAINED.items()},
}
"""Methods that the embedded engine runs, and the keys of their sections that it reads."""


def tree_shape(speculation: Trained, top_k: Sequence[int] | None) -> TreeShape:
    """Which guesses are made.

    Args:
        speculation: the section.
        top_k: guesses below a node, level by level, where the checkpoint publishes them.

    Raises:
        EngineError: the section's `choices` are no tree.
    """
    return TRAINED[speculation.method].shape(speculation, top_k)
