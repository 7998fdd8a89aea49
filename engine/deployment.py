"""From a deployment spec and its compiled directories to an engine that is ready to serve."""

import math
from collections.abc import Callable
from pathlib import Path

from deployments.engines import EmbeddedEngine
from deployments.spec import DeploymentSpec
from deployments.speculation import NoSpeculation
from engine.backend import open_backend
from engine.compiled_runner import CompiledRunner
from engine.drafters import open_speculator
from engine.engine import Engine, EngineLimits
from engine.manifest import check_fits, load_manifest
from engine.runner import BLOCK_SIZE
from speculators.base import Speculator


def open_runner(engine: EmbeddedEngine, directory: Path, *, num_blocks: int) -> CompiledRunner:
    """A compiled target alone, on the backend that a spec's `engine` section names.

    Raises:
        EngineError: the directory is missing or damaged.
    """
    backend = open_backend(engine)
    return CompiledRunner(directory, backend, num_blocks=num_blocks)


def _unwatched(speculator: Speculator) -> Speculator:
    return speculator


def open_engine(
    spec: DeploymentSpec,
    directory: Path,
    speculator_directory: Path,
    *,
    watch: Callable[[Speculator], Speculator] = _unwatched,
) -> tuple[Engine, CompiledRunner]:
    """The engine of a deployment and its runner, with a cache for as many full-length requests as run at once.

    Args:
        spec: the deployment.
        directory: the compiled target.
        speculator_directory: the compiled speculator, where the method has one.
        watch: puts something around the speculator that sees its drafts and what becomes of them.

    Raises:
        EngineError: a directory is missing, damaged, or does not fit the spec or the other.
    """
    embedded = spec.embedded
    backend = open_backend(embedded)
    length, slots = embedded.max_sequence_length, embedded.max_batch_size
    num_blocks = slots * math.ceil(length / BLOCK_SIZE)
    manifest = load_manifest(directory)
    check_fits(manifest, directory, precision=embedded.precision, max_sequence_length=length)
    speculator = open_speculator(
        NoSpeculation() if spec.bls_drafts else spec.speculation,
        speculator_directory,
        target=manifest,
        slots=slots,
        max_sequence_length=length,
        num_blocks=num_blocks,
        backend=backend,
    )
    runner = CompiledRunner(
        directory,
        backend,
        num_blocks=num_blocks,
        hidden_layers=speculator.needs_hidden,
        branch_blocks=2 * slots * speculator.max_branches,  # a branch may lie over the end of a block
    )
    limits = EngineLimits(
        max_batch_size=slots,
        max_sequence_length=length,
        max_queue_size=embedded.max_queue_size,
        max_queue_seconds=embedded.max_queue_seconds,
        max_request_seconds=embedded.max_request_seconds,
        prefill_chunk=embedded.prefill_chunk,
        idle_prefill_chunk=embedded.idle_prefill_chunk,
        max_draft_length=getattr(spec.speculation, "draft_length", 0),
        kv_cache_reuse=embedded.kv_cache_reuse,
        longest_draft=spec.speculation.longest_draft,
        adaptive_drafts=getattr(spec.speculation, "adaptive", True),
    )
    return Engine(runner, watch(speculator), limits), runner
