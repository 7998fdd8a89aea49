"""Makes the speculator of a deployment: for trained ones, loads their compiled graphs and checks that they fit.

Example::

    backend, target = open_backend(EmbeddedEngine()), load_manifest(engine_directory)
    sizes = {"slots": 16, "max_sequence_length": 2048, "num_blocks": 1024}
    speculator = open_speculator(spec.speculation, directory, target=target, backend=backend, **sizes)
    runner = CompiledRunner(engine_directory, backend, num_blocks=1024, hidden_layers=speculator.needs_hidden)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.speculation import AnySpeculation, DraftModel, Eagle, Eagle3, Medusa, MlpSpeculator
from engine.backend import Backend, PagedNetwork
from engine.manifest import (
    MODEL_NAME,
    EngineError,
    EngineManifest,
    SpeculatorManifest,
    check_belongs,
    load_manifest,
    load_speculator_manifest,
)
from engine.runner import BLOCK_SIZE, SequenceInput
from engine.tree_shapes import Trained, check_depth, least_likely, tree_shape
from speculators.base import Speculator
from speculators.draft_model.draft import DraftModelDrafter
from speculators.eagle.draft import EagleDrafter
from speculators.enhanced import EnhancedSpeculator
from speculators.graphs import CachedInput
from speculators.growth import TreeShape
from speculators.medusa.draft import MedusaDrafter
from speculators.mlp_speculator.draft import MlpDrafter
from speculators.registry import METHODS, create, settings_of

_COMPILED: Mapping[str, tuple[str, ...]] = {
    "draft_model": ("model", "draft_length", "precision"),
    "mlp_speculator": ("checkpoint", "draft_length", "candidates"),
    "medusa": ("checkpoint", "num_heads", "choices"),
    "eagle": ("checkpoint", "depth", "max_draft_tokens", "max_non_leaves", "choices"),
    "eagle3": ("checkpoint", "draft_length", "dynamic_tree", "layers_to_capture", "suffix_automaton"),
}

EMBEDDED_SETTINGS: Mapping[str, tuple[str, ...]] = {
    **{method: settings_of(method) for method in METHODS},
    **_COMPILED,
}
"""Methods that the embedded engine runs, and the keys of their sections that it reads."""


def open_speculator(
    speculation: AnySpeculation,
    directory: Path,
    *,
    target: EngineManifest,
    slots: int,
    max_sequence_length: int,
    num_blocks: int,
    backend: Backend,
) -> Speculator:
    """The speculator that a spec's `speculation` section describes.

    Args:
        speculation: the section.
        directory: where `build.drafters` put its graphs; not read for methods that have none.
        target: manifest of the engine that it is to draft for.
        slots: most requests at once.
        max_sequence_length: most tokens of a request.
        num_blocks: cache blocks of the target; a drafter with a KV cache has as many, numbered alike.
        backend: what runs the graphs.

    Raises:
        EngineError: the graphs are missing, damaged, or those of another target or method; or the spec asks for more
            than the checkpoint has.
        ValueError: a method that the embedded engine does not run.
    """
    if isinstance(speculation, DraftModel):
        manifest = load_manifest(directory)
        _check_draft(manifest, directory, target, max_sequence_length)
        outputs = ("candidates", "log_probs")
        graph = backend.paged(
            directory / MODEL_NAME, manifest, outputs=outputs, num_blocks=num_blocks, branch_blocks=0
        )
        cached = BlockGraph(graph, outputs, num_blocks)
        return DraftModelDrafter(cached, speculation.draft_length, least_likely(speculation))
    if isinstance(speculation, (MlpSpeculator, Medusa, Eagle, Eagle3)):
        return _open_trained(speculation, directory, target, slots, max_sequence_length, num_blocks, backend)
    section = speculation.model_dump(include=set(settings_of(speculation.method)))
    return create(speculation.method, **section)


class BlockGraph:
    """A paged network with so many cache blocks, which requests lie in; see `speculators.graphs.CachedGraph`."""

    def __init__(self, graph: PagedNetwork, outputs: Sequence[str], num_blocks: int) -> None:
        self._graph, self._outputs, self._num_blocks = graph, outputs, num_blocks

    def run(self, batch: Sequence[CachedInput]) -> dict[str, NDArray[Any]]:
        """One call for the whole batch, or several where one input writes to blocks of another.

        That happens when requests share the beginning of a text that the drafter has not read yet.
        """
        parts = _writing_apart(batch)
        if len(parts) == 1:
            return self._run_apart(batch)
        found = [{name: values.copy() for name, values in self._run_apart(part).items()} for part in parts]
        return {name: np.concatenate([part[name] for part in found]) for name in self._outputs}

    def _run_apart(self, batch: Sequence[CachedInput]) -> dict[str, NDArray[Any]]:
        hidden = [item.hidden for item in batch if item.hidden is not None]
        self._graph.forward(
            [self._sequence(item) for item in batch], np.concatenate(hidden) if hidden else None
        )
        return {name: self._graph.output(name) for name in self._outputs}

    def _sequence(self, item: CachedInput) -> SequenceInput:
        if max(item.blocks) >= self._num_blocks:
            raise ValueError(
                f"a request lies in block {max(item.blocks)}; the drafter has {self._num_blocks}"
            )
        return SequenceInput(
            item.tokens,
            item.past,
            item.blocks,
            is_prompt=item.parents is None,
            parents=item.parents,
            logits_from=item.outputs_from,
        )


def _writing_apart(batch: Sequence[CachedInput]) -> list[list[CachedInput]]:
    """Parts of a batch, in order, in each of which every block that is written to belongs to one input."""
    parts: list[list[CachedInput]] = [[]]
    named: set[int] = set()
    written: set[int] = set()
    for item in batch:
        own = set(item.blocks[item.past // BLOCK_SIZE : -(-(item.past + len(item.tokens)) // BLOCK_SIZE)])
        if own & named or written.intersection(item.blocks):
            parts.append([])
            named, written = set(), set()
        parts[-1].append(item)
        named.update(item.blocks)
        written |= own
    return parts


def _open_trained(
    speculation: Trained,
    directory: Path,
    target: EngineManifest,
    slots: int,
    max_sequence_length: int,
    num_blocks: int,
    backend: Backend,
) -> Speculator:
    manifest = load_speculator_manifest(directory)
    check_belongs(manifest, directory, method=speculation.method, target=target)
    shape = tree_shape(speculation, manifest.top_k)
    _check_shape(shape, manifest, directory, max_sequence_length)
    files = [directory / name for name in manifest.graphs]
    if isinstance(speculation, MlpSpeculator):
        stages = {file: backend.plain(file, manifest) for file in files}  # tied ones are there several times
        return MlpDrafter([stages[file] for file in files], shape)
    if isinstance(speculation, Medusa):
        return MedusaDrafter(backend.plain(files[0], manifest), shape)
    outputs = ("candidates", "log_probs", "next_hidden")
    # At every level of a tree all nodes that went on are run again, each of them maybe a branch over two blocks.
    branches = 0 if shape.most_children == 1 else (shape.width or shape.total) * shape.depth
    graph = backend.paged(
        files[0],
        manifest,
        outputs=outputs,
        num_blocks=num_blocks,
        branch_blocks=2 * slots * branches,
    )
    fusion = backend.plain(files[1], manifest) if len(files) > 1 else None
    cached = BlockGraph(graph, outputs, num_blocks)
    drafter = EagleDrafter(manifest.method, cached, fusion, shape, manifest.hidden_layers)
    enhancer = speculation.suffix_automaton if isinstance(speculation, Eagle3) else None
    return drafter if enhancer is None else EnhancedSpeculator(drafter, enhancer.threshold)


def _check_shape(shape: TreeShape, manifest: SpeculatorManifest, directory: Path, length: int) -> None:
    check_depth(shape, manifest.levels, manifest.source)
    if shape.most_children > manifest.candidates:
        raise EngineError(
            f"speculation asks for {shape.most_children} guesses below a node, but {directory} was compiled "
            f"for {manifest.candidates}; run `drafthouse build`"
        )
    if manifest.max_sequence_length is not None and manifest.max_sequence_length < length:
        raise EngineError(
            f"{directory} was compiled for {manifest.max_sequence_length} tokens, the spec asks for {length}; "
            "run `drafthouse build`"
        )


def _check_draft(draft: EngineManifest, directory: Path, target: EngineManifest, length: int) -> None:
    if draft.vocab_size != target.vocab_size:
        raise EngineError(
            f"{directory} knows {draft.vocab_size} tokens, {target.source} knows {target.vocab_size}; a draft model "
            "must have the target's tokenizer"
        )
    if draft.max_sequence_length < length:
        raise EngineError(
            f"{directory} was compiled for {draft.max_sequence_length} tokens, the spec asks for {length}; "
            "run `drafthouse build`"
        )
