"""From a deployment spec and its compiled directories to an engine that is ready to serve."""

import bisect
import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deployments.engines import EmbeddedEngine
from deployments.spec import DeploymentSpec
from deployments.speculation import NoSpeculation
from engine.backend import Backend
from engine.compiled_runner import CompiledRunner
from engine.control.beginning import (
    MeasuredBeginning,
    MeasuredDrafting,
    guessed_drafts,
    guessed_steps,
)
from engine.control.calibration import Calibration, Drafts, calibrate, with_costs
from engine.control.controller import Controller
from engine.drafters import prepare
from engine.engine import Engine
from engine.manifest import EngineError, check_fits, load_manifest
from engine.methods import runs_network
from engine.plan import CostPoint, Plan
from engine.planned import calibrates, drafting, measures, named_apart, plan_of
from engine.policy import DraftPolicy, ScheduledPolicy
from engine.runner import BLOCK_SIZE
from engine.scheduler import EngineConfig
from speculators.base import Speculator

_log = logging.getLogger(__name__)


def open_backend(engine: EmbeddedEngine) -> Backend:
    """The backend that a spec's engine section names; PyTorch is imported only here, where it is asked for.

    Raises:
        EngineError: the attention kernel that it names cannot be had.
    """
    if engine.backend == "openvino":
        from engine.attention_kernels import Attention, chosen_kernel
        from engine.openvino_graphs import OpenVinoBackend

        attention = Attention(engine.attention_kernel, engine.kv_cache_precision)
        chosen_kernel(attention)
        return OpenVinoBackend(engine.threads, attention)
    from engine.torch_graphs import TorchBackend

    return TorchBackend()


def open_runner(engine: EmbeddedEngine, directory: Path, *, num_blocks: int) -> CompiledRunner:
    """A compiled target alone, on the backend that a spec's `engine` section names.

    Raises:
        EngineError: the directory is missing or damaged.
    """
    backend = open_backend(engine)
    return CompiledRunner(directory, backend, num_blocks=num_blocks)


def _unwatched(policy: DraftPolicy) -> DraftPolicy:
    return policy


def _check_trees(speculator: Speculator, runner: CompiledRunner) -> None:
    """Refuse trees whose rows this processor computes otherwise: they are run whole (`engine.rows_at_once`).

    Raises:
        EngineError: it proposes such.
    """
    needs = speculator.requirements
    if not needs.max_branches and not needs.max_probes:
        return
    rows = 1 + speculator.max_draft_length + needs.max_probes
    if not runner.keeps_bits(rows):
        most = bisect.bisect_left(range(1, rows), True, key=lambda fewer: not runner.keeps_bits(fewer))
        raise EngineError(
            f"speculation.method {speculator.name} drafts trees of up to {rows} tokens, and among as many this "
            "processor computes a token otherwise than alone, so output would not be exact: draft trees of at most "
            f"{most} tokens, or try engine.precision fp32"
        )


def open_engine(
    spec: DeploymentSpec,
    directory: Path,
    speculators: Mapping[str, Path],
    *,
    watch: Callable[[DraftPolicy], DraftPolicy] = _unwatched,
    tell: Callable[[str], None] = _log.info,
) -> tuple[Engine, CompiledRunner]:
    """The engine of a deployment and its runner, with a cache for as many full-length requests as run at once.

    Args:
        spec: the deployment.
        directory: the compiled target.
        speculators: the compiled speculator of each deployment that drafts (`engine.planned.drafting`), where its
            method has one.
        watch: puts something around the policy that sees its drafts and what becomes of them.
        tell: gets a line where costs are measured at start.

    Raises:
        EngineError: a directory is missing, damaged, or does not fit the spec or the other.
    """
    embedded = spec.embedded
    backend = open_backend(embedded)
    length, slots = embedded.max_sequence_length, embedded.max_batch_size
    manifest = load_manifest(directory)
    check_fits(manifest, directory, precision=embedded.precision, max_sequence_length=length)
    plan, deployments = plan_of(spec), drafting(spec)
    prepared = {
        each.name: prepare(
            NoSpeculation() if each.bls_drafts else each.speculation,
            speculators[each.name],
            target=manifest,
            slots=slots,
            max_sequence_length=length,
        )
        for each in deployments
    }
    needs = [each.requirements for group in prepared.values() for each in group]
    scratch = max(each.scratch_rows for each in needs)
    num_blocks = slots * math.ceil((length + scratch) / BLOCK_SIZE)
    runner = CompiledRunner(
        directory,
        backend,
        num_blocks=num_blocks,
        hidden_layers=list(dict.fromkeys(layer for each in needs for layer in each.hidden_layers)),
        # a branch may lie over the end of a block
        branch_blocks=2 * slots * max(each.max_branches for each in needs),
    )
    if any(each.block_weights for each in needs) and not runner.most_weighed:
        raise EngineError(
            "speculation.choice goes by the attention that blocks of the cache get, which this engine's attention does "
            "not tell; choice: window needs nothing, engine.attention_kernel: native tells"
        )
    longest = max(getattr(each.speculation, "draft_length", 0) for each in deployments)
    opened = {name: [each.open(backend, runner) for each in group] for name, group in prepared.items()}
    for speculator in itertools.chain.from_iterable(opened.values()):
        _check_trees(speculator, runner)
    policy = _policy(spec, plan, opened, runner, tell)
    return Engine(runner, watch(policy), _config(embedded, longest)), runner


def _config(embedded: EmbeddedEngine, longest_draft: int) -> EngineConfig:
    return EngineConfig(
        max_batch_size=embedded.max_batch_size,
        max_sequence_length=embedded.max_sequence_length,
        max_queue_size=embedded.max_queue_size,
        max_queue_seconds=embedded.max_queue_seconds,
        max_request_seconds=embedded.max_request_seconds,
        prefill_chunk=embedded.prefill_chunk,
        idle_prefill_chunk=embedded.idle_prefill_chunk,
        max_draft_length=longest_draft,
        kv_cache_reuse=embedded.kv_cache_reuse,
    )


def _policy(
    spec: DeploymentSpec,
    plan: Plan | None,
    opened: Mapping[str, list[Speculator]],
    runner: CompiledRunner,
    tell: Callable[[str], None],
) -> DraftPolicy:
    """What drafts when: the plan's choice, what is worth it by measured costs, or the spec's schedule."""
    slots = spec.embedded.max_batch_size
    if plan is not None:
        served = {name: opened[name] for name in plan.served}
        if calibrates(spec):
            costs = {name: plan.deployments[name].draft_costs for name in served}
            found = _calibrated(spec, runner, plan.verify_costs, served, costs)
            tell(f"{found}: {found.beside_plan}")
            plan = with_costs(plan, found)
        return Controller(plan, named_apart(served), slots)
    if measures(spec):
        longest = max(each.max_draft_length for group in opened.values() for each in group)
        size = slots, spec.embedded.max_sequence_length, longest
        found = _calibrated(
            spec, runner, guessed_steps(*size), opened, dict.fromkeys(opened, guessed_drafts(*size))
        )
        tell(f"{found}: {found.least}")
        drafts = {name: MeasuredDrafting(found.draft_costs.get(name, ())) for name in opened}
        return Controller(MeasuredBeginning(found.costs, runner.buckets, drafts), opened, slots)
    (group,) = opened.values()
    return ScheduledPolicy(
        group,
        longest_draft=spec.speculation.longest_draft,
        adaptive=getattr(spec.speculation, "adaptive", True),
    )


def _calibrated(
    spec: DeploymentSpec,
    runner: CompiledRunner,
    steps: Sequence[CostPoint],
    opened: Mapping[str, list[Speculator]],
    drafts: Mapping[str, Sequence[CostPoint]],
) -> Calibration:
    """Costs of steps and drafts as they are here, where all that is known is another machine's, or a guess."""
    return calibrate(
        runner,
        steps,
        slots=spec.embedded.max_batch_size,
        most=spec.embedded.max_sequence_length,
        drafts=[
            # a lookup before it costs nothing
            Drafts(name, drafts[name], group[-1], runner.manifest.hidden_size)
            for name, group in opened.items()
            if runs_network(group[-1])
        ],
    )
