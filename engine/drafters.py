"""Makes the speculators of a deployment: first says what they need, then loads their compiled graphs.

Example::

    target = load_manifest(engine_directory)
    prepared = prepare(spec.speculation, directory, target=target, slots=16, max_sequence_length=2048)
    layers = [layer for each in prepared for layer in each.requirements.hidden_layers]
    runner = CompiledRunner(engine_directory, backend, num_blocks=1024, hidden_layers=layers)
    speculators = [each.open(backend, runner) for each in prepared]
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deployments.drafting import Speculation
from deployments.enhancer import SelfLookupEnhancer
from deployments.speculation import AnySpeculation, DraftModel, LowBit
from engine.backend import Backend
from engine.block_graph import BlockGraph
from engine.compiled_runner import CompiledRunner
from engine.manifest import (
    MODEL_NAME,
    CompiledManifest,
    EngineError,
    EngineManifest,
    SpeculatorManifest,
    check_belongs,
    load_manifest,
    load_speculator_manifest,
)
from engine.methods import (
    DRAFT_MODEL,
    LOW_BIT,
    SUFFIX,
    TRAINED,
    TrainedParts,
    check_depth,
    least_likely,
)
from engine.target_copy import CompiledCopy
from speculators.base import Requirements, Speculator
from speculators.draft_model.draft import DraftModelDrafter
from speculators.growth import TreeShape
from speculators.lookup import ChainedLookup, SureLookup
from speculators.low_bit import LowBitSpeculator
from speculators.registry import create, settings_of
from speculators.suffix_automaton import END, SuffixSpeculator


@dataclass(frozen=True, slots=True)
class Prepared:
    """A speculator that has been checked and not yet opened.

    Attributes:
        requirements: what it needs.
        open: loads its graphs on the target's backend, beside the target.
    """

    requirements: Requirements
    open: Callable[[Backend, CompiledRunner], Speculator]


def prepare(
    speculation: AnySpeculation,
    directory: Path,
    *,
    target: EngineManifest,
    slots: int,
    max_sequence_length: int,
) -> list[Prepared]:
    """The speculators that a spec's `speculation` section describes, the one to be asked first in front.

    Args:
        speculation: the section.
        directory: where `build.drafters` put its graphs; not read for methods that have none.
        target: manifest of the engine that it is to draft for.
        slots: most requests at once.
        max_sequence_length: most tokens of a request.

    Raises:
        EngineError: the graphs are missing, damaged, or those of another target or method; or the spec asks for more
            than the checkpoint has.
        ValueError: a method that the embedded engine does not run.
    """
    if speculation.method in TRAINED:
        prepared, longest = _trained(speculation, directory, target, slots, max_sequence_length)
    elif speculation.method == DRAFT_MODEL:
        prepared, longest = _draft_model(speculation, directory, target, max_sequence_length)
    elif speculation.method == LOW_BIT:
        prepared, longest = _low_bit(speculation, directory, target, max_sequence_length)
    else:
        section = speculation.model_dump(include=set(settings_of(speculation.method)))
        made = create(speculation.method, **section)
        if isinstance(made, SuffixSpeculator) and getattr(speculation, "texts", None) is not None:
            made.search(_texts(directory, target))
        prepared, longest = Prepared(made.requirements, lambda backend, runner: made), made.max_draft_length
    enhancer: SelfLookupEnhancer | None = getattr(speculation, "suffix_automaton", None)
    if enhancer is None or not isinstance(speculation, Speculation):
        return [prepared]
    if enhancer.chain_length is None:
        lookup = SureLookup(enhancer.threshold, longest)
    else:
        least = least_likely(speculation, for_nothing=True)
        lookup = ChainedLookup(enhancer.threshold, enhancer.chain_length, least)
    return [Prepared(lookup.requirements, lambda backend, runner: lookup), prepared]


def _draft_model(
    speculation: Any, directory: Path, target: EngineManifest, max_sequence_length: int
) -> tuple[Prepared, int]:
    assert isinstance(speculation, DraftModel)
    manifest = load_manifest(directory)
    _check_draft(manifest, directory, target, max_sequence_length)

    def load(backend: Backend, runner: CompiledRunner) -> Speculator:
        outputs = ("candidates", "log_probs")
        graph = backend.paged(
            directory / MODEL_NAME, manifest, outputs=outputs, num_blocks=runner.num_blocks, branch_blocks=0
        )
        cached = BlockGraph(graph, outputs, runner.num_blocks)
        return DraftModelDrafter(cached, speculation.draft_length, least_likely(speculation))

    return Prepared(Requirements(), load), speculation.draft_length


def _low_bit(
    speculation: Any, directory: Path, target: EngineManifest, max_sequence_length: int
) -> tuple[Prepared, int]:
    assert isinstance(speculation, LowBit)
    manifest = load_speculator_manifest(directory)
    check_belongs(manifest, directory, method=speculation.method, target=target)
    _check_length(manifest, directory, max_sequence_length)

    def load(backend: Backend, runner: CompiledRunner) -> Speculator:
        copy = CompiledCopy(directory / manifest.graphs[0], manifest, backend, runner)
        return LowBitSpeculator(copy, speculation.draft_length)

    return Prepared(LowBitSpeculator.requirements, load), speculation.draft_length


def _trained(
    speculation: Any, directory: Path, target: EngineManifest, slots: int, max_sequence_length: int
) -> tuple[Prepared, int]:
    method = TRAINED[speculation.method]
    manifest = load_speculator_manifest(directory)
    check_belongs(manifest, directory, method=speculation.method, target=target)
    shape = method.shape(speculation, manifest.top_k)
    _check_shape(shape, manifest, directory, max_sequence_length)
    files = [directory / name for name in manifest.graphs]

    def load(backend: Backend, runner: CompiledRunner) -> Speculator:
        return method.open(TrainedParts(manifest, files, shape, slots, runner.num_blocks, backend))

    return Prepared(method.required(shape, manifest.hidden_layers), load), shape.total


def _texts(directory: Path, target: EngineManifest) -> list[NDArray[np.int32]]:
    """What `build.drafters` has made of a file of texts: tokens, with `END` behind each text."""
    manifest = load_speculator_manifest(directory)
    check_belongs(manifest, directory, method=SUFFIX, target=target)
    tokens: NDArray[np.int32] = np.load(directory / manifest.graphs[0], allow_pickle=False)
    return [text[:-1] for text in np.split(tokens, np.flatnonzero(tokens == END) + 1)[:-1]]


def _check_shape(shape: TreeShape, manifest: SpeculatorManifest, directory: Path, length: int) -> None:
    check_depth(shape, manifest.levels, manifest.source)
    if shape.most_children > manifest.candidates:
        raise EngineError(
            f"speculation asks for {shape.most_children} guesses below a node, but {directory} was compiled "
            f"for {manifest.candidates}; run `drafthouse build`"
        )
    _check_length(manifest, directory, length)


def _check_draft(draft: EngineManifest, directory: Path, target: EngineManifest, length: int) -> None:
    if draft.vocab_size != target.vocab_size:
        raise EngineError(
            f"{directory} knows {draft.vocab_size} tokens, {target.source} knows {target.vocab_size}; a draft model "
            "must have the target's tokenizer"
        )
    _check_length(draft, directory, length)


def _check_length(manifest: CompiledManifest, directory: Path, length: int) -> None:
    if manifest.max_sequence_length is not None and manifest.max_sequence_length < length:
        raise EngineError(
            f"{directory} was compiled for {manifest.max_sequence_length} tokens, the spec asks for {length}; "
            "run `drafthouse build`"
        )
