"""The methods that the embedded engine runs: all that this room knows of each, in one table.

A method without weights needs no entry here: it is in `speculators.registry`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.drafting import Speculation
from deployments.speculation import Choices as Paths
from deployments.speculation import Eagle, Eagle3, Medusa, MlpSpeculator, PEagle
from engine.backend import Backend
from engine.block_graph import BlockGraph
from engine.manifest import EngineError, SpeculatorManifest
from speculators.base import Requirements, Speculator
from speculators.eagle.draft import EagleDrafter
from speculators.growth import Choices, Likeliest, TreeShape
from speculators.medusa.draft import MedusaDrafter
from speculators.mlp_speculator.draft import MlpDrafter
from speculators.peagle.draft import PEagleDrafter
from speculators.registry import METHODS, settings_of

Trained = MlpSpeculator | Medusa | Eagle | Eagle3 | PEagle

# How likely a chain must be to be drafted on, if drafts are adaptive. With EAGLE-3 on SmolLM2-135M a level costs a
# tenth of a step, and a token that was accepted saves half of one; replaying 26 prompts, 0.2 to 0.4 are within 1 % of
# each other and 6 % faster than lengths that follow what was accepted lately.
_LIKELY = math.log(0.3)
# Likewise of a chain that a lookup goes on with, or that was drafted in one pass: further tokens take no time to draft,
# only to be verified.
_FOR_NOTHING = math.log(0.1)
# Guesses below a node of the kit's own Medusa trees, as in the published ones.
_MEDUSA_CHILDREN = 10
# Nodes of such a tree, for each head: more were hardly ever accepted from heads of small models.
_MEDUSA_NODES_PER_HEAD = 4


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
        shape: of its trees, by the section and the guesses below a node, level by level, where the checkpoint publishes
            them; raises EngineError where the section's `choices` are no tree.
        required: what it needs, by the shape of its trees and the hidden states that its manifest names.
        open: loads its graphs.
    """

    settings: tuple[str, ...]
    shape: Callable[[Any, Sequence[int] | None], TreeShape]
    required: Callable[[TreeShape, tuple[int, ...]], Requirements]
    open: Callable[[TrainedParts], Speculator]


def least_likely(speculation: Speculation, *, for_nothing: bool = False) -> float:
    """Log-probability below which a chain is not drafted on; lower where a further token takes no time to draft."""
    if not speculation.adaptive:
        return -math.inf
    return _FOR_NOTHING if for_nothing else _LIKELY


def _mlp_shape(speculation: MlpSpeculator, top_k: Sequence[int] | None) -> TreeShape:
    """As many paths as asked for, each level with as many guesses as the checkpoint publishes."""
    length, paths = speculation.draft_length, speculation.candidates
    if paths == 1:
        return Likeliest.chain(length, least_likely(speculation))
    return Likeliest(length, tuple((top_k or ())[:length]), paths, paths * length)


def _medusa_shape(speculation: Medusa, top_k: Sequence[int] | None) -> TreeShape:
    """The section's own tree, or the likeliest few nodes; in turns with a lookup, a chain."""
    if speculation.chain_length is not None:
        return Likeliest.chain(speculation.num_heads, least_likely(speculation))
    if speculation.choices is not None:
        return _published(speculation.choices)
    heads = speculation.num_heads
    return Likeliest(heads, (_MEDUSA_CHILDREN,) * heads, _MEDUSA_CHILDREN, _MEDUSA_NODES_PER_HEAD * heads)


def _eagle_shape(speculation: Eagle, top_k: Sequence[int] | None) -> TreeShape:
    """The section's own tree, or EAGLE-2's."""
    if speculation.choices is not None:
        return _published(speculation.choices)
    depth, children = speculation.depth, speculation.max_non_leaves
    return Likeliest(depth, (children,) * depth, children, speculation.max_draft_tokens)


def _eagle3_shape(speculation: Eagle3, top_k: Sequence[int] | None) -> TreeShape:
    """A chain, or EAGLE-2's tree."""
    length, tree = speculation.draft_length, speculation.dynamic_tree
    if tree is None:
        return Likeliest.chain(length, least_likely(speculation))
    return Likeliest(length, (tree.top_k,) * length, tree.top_k, tree.total or tree.top_k * length)


def _peagle_shape(speculation: PEagle, top_k: Sequence[int] | None) -> TreeShape:
    """A chain."""
    return Likeliest.chain(speculation.draft_length, least_likely(speculation, for_nothing=True))


def _published(paths: Paths) -> TreeShape:
    try:
        return Choices(paths)
    except ValueError as error:
        raise EngineError(f"speculation.{error}") from None


def _open_mlp(parts: TrainedParts) -> Speculator:
    # Tied stages are there several times.
    stages = {file: parts.backend.plain(file, parts.manifest) for file in parts.files}
    return MlpDrafter([stages[file] for file in parts.files], parts.shape)


def _open_medusa(parts: TrainedParts) -> Speculator:
    return MedusaDrafter(parts.backend.plain(parts.files[0], parts.manifest), parts.shape)


def _open_eagle(parts: TrainedParts) -> Speculator:
    fusion = parts.backend.plain(parts.files[1], parts.manifest) if len(parts.files) > 1 else None
    manifest = parts.manifest
    return EagleDrafter(manifest.method, _cached(parts), fusion, parts.shape, manifest.hidden_layers)


def _open_peagle(parts: TrainedParts) -> Speculator:
    manifest, fusion = parts.manifest, parts.backend.plain(parts.files[1], parts.manifest)
    assert manifest.mask_token is not None
    return PEagleDrafter(_cached(parts), fusion, parts.shape, manifest.hidden_layers, manifest.mask_token)


def _cached(parts: TrainedParts) -> BlockGraph:
    """The first graph, which has a KV cache."""
    shape = parts.shape
    outputs = ("candidates", "log_probs", "next_hidden")
    # At every level of a tree all nodes that went on are run again, each of them maybe a branch over two blocks.
    branches = 0 if shape.most_children == 1 else (shape.width or shape.total) * shape.depth
    graph = parts.backend.paged(
        parts.files[0],
        parts.manifest,
        outputs=outputs,
        num_blocks=parts.num_blocks,
        branch_blocks=2 * parts.slots * branches,
    )
    return BlockGraph(graph, outputs, parts.num_blocks)


TRAINED: Mapping[str, TrainedMethod] = {
    "mlp_speculator": TrainedMethod(
        ("checkpoint", "draft_length", "candidates", "suffix_automaton"),
        _mlp_shape,
        MlpDrafter.required,
        _open_mlp,
    ),
    "medusa": TrainedMethod(
        ("checkpoint", "num_heads", "choices", "suffix_automaton"),
        _medusa_shape,
        MedusaDrafter.required,
        _open_medusa,
    ),
    "eagle": TrainedMethod(
        ("checkpoint", "depth", "max_draft_tokens", "max_non_leaves", "choices"),
        _eagle_shape,
        EagleDrafter.required,
        _open_eagle,
    ),
    "eagle3": TrainedMethod(
        ("checkpoint", "draft_length", "dynamic_tree", "layers_to_capture", "suffix_automaton"),
        _eagle3_shape,
        EagleDrafter.required,
        _open_eagle,
    ),
    "peagle": TrainedMethod(
        ("checkpoint", "draft_length", "layers_to_capture", "suffix_automaton"),
        _peagle_shape,
        PEagleDrafter.required,
        _open_peagle,
    ),
}
DRAFT_MODEL = "draft_model"
"""A target of its own: no method of `TRAINED`, since its manifest is that of an engine."""

SUFFIX = "suffix_automaton"
"""It has no weights, but may have texts, which `build.drafters` puts where others have their graphs."""
LOW_BIT = "low_bit"
"""The target in four bits: no method of `TRAINED`, since it has no checkpoint."""

EMBEDDED_SETTINGS: Mapping[str, tuple[str, ...]] = {
    **{method: settings_of(method) for method in METHODS},
    SUFFIX: (*settings_of(SUFFIX), "texts"),
    DRAFT_MODEL: ("model", "draft_length", "precision", "suffix_automaton"),
    LOW_BIT: ("draft_length", "rank", "bits_per_weight"),
    **{name: method.settings for name, method in TRAINED.items()},
}
"""Methods that the embedded engine runs, and the keys of their sections that it reads."""


def runs_network(speculator: Speculator) -> bool:
    """Whether drafting takes calls of a network: the others look things up, which costs next to nothing."""
    return speculator.name not in METHODS or speculator.requirements.drafts_with_target


def tree_shape(speculation: Trained, top_k: Sequence[int] | None) -> TreeShape:
    """Which guesses are made.

    Args:
        speculation: the section.
        top_k: guesses below a node, level by level, where the checkpoint publishes them.

    Raises:
        EngineError: the section's `choices` are no tree.
    """
    return TRAINED[speculation.method].shape(speculation, top_k)


def check_depth(shape: TreeShape, levels: int | None, source: str) -> None:
    """Refuse trees that are deeper than a checkpoint drafts.

    Raises:
        EngineError: they are.
    """
    if levels is not None and shape.depth > levels:
        raise EngineError(
            f"speculation asks for {shape.depth} draft tokens in a row, but {source} gives {levels}"
        )
