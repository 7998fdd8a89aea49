"""What the files of a deployment tell before anything is compiled: all that the embedded engine would refuse later.

The target's files are read once, for the hash that names the compiled engine; of its tensors only embedding and output
matrix are looked at, where they must be the same or a drafter takes them. Drafters, which are small, are read whole,
draft models that come from elsewhere by their headers.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from build.draft_graphs import plan_graphs, read_drafter, trained_section
from build.drafters import check_draft, completed_draft
from build.embedded_memory import disk_findings, memory_findings
from build.low_bit import check_bits, check_rank
from build.model_paths import suggestion
from build.own_texts import check_texts
from build.targets.architecture import Architecture
from build.targets.errors import TargetError
from build.targets.prepare import check_source, check_target
from build.targets.weights import load_weights
from build.triton.model_config import repository_place_findings
from deployments.findings import Finding
from deployments.places import drafter_source
from deployments.spec import DeploymentSpec
from deployments.speculation import DraftModel, LowBit, SuffixAutomaton
from engine.attention_kernels import Attention, chosen_kernel
from engine.manifest import EngineError
from engine.planned import check_plan, drafting
from speculators.formats.errors import CheckpointError

_REFUSALS = (TargetError, CheckpointError, EngineError, OSError)


def model_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """Target, drafter, memory, disk, and the place of the repository."""
    if (yield from _refused("attention", "engine", lambda: _attention(spec))):
        return
    target = yield from _target(spec)
    try:
        deployments = drafting(spec)
    except EngineError:  # which is another's finding
        return
    for each in deployments:
        yield from _drafter(each, target)
    if target is not None:
        yield from _refused("plan-of-something-else", "speculation.plan", lambda: check_plan(spec))
    if target is not None:
        yield from memory_findings(spec, target)
        yield from disk_findings(spec, target)
    yield from repository_place_findings(spec)


def _attention(spec: DeploymentSpec) -> None:
    engine = spec.embedded
    if engine.backend == "openvino":
        chosen_kernel(Attention(engine.attention_kernel, engine.kv_cache_precision))


def _target(spec: DeploymentSpec) -> Generator[Finding, None, Architecture | None]:
    """The target's architecture as the generator's value; None if it is not there or cannot be used."""
    directory, source = spec.target.model, spec.target.source
    if not directory.exists():
        yield from _fetched(directory, source)
        return None
    if (yield from _refused("model-unreadable", "target.model", lambda: check_target(directory))):
        return None
    architecture = Architecture.from_directory(directory)
    yield from _positions(spec, architecture, "target.model")
    return architecture


def _fetched(directory: Path, source: str | None) -> Iterator[Finding]:
    if source is None:
        yield Finding(
            "model-missing",
            "error",
            f"target.model: {directory} does not exist{suggestion(directory)}",
            f"drafthouse model SOURCE {directory}, or target.source, from which build makes it",
        )
    elif not (yield from _refused("source-unusable", "target.source", lambda: check_source(source))):
        yield Finding(
            "model-not-yet-made",
            "note",
            f"target.model: {directory} does not exist yet; build makes it from {source}, and then checks what depends "
            "on it",
        )


def _drafter(spec: DeploymentSpec, target: Architecture | None) -> Iterator[Finding]:
    speculation, source = spec.speculation, drafter_source(spec.speculation)
    if isinstance(speculation, LowBit) and target is not None:
        yield from _refused("rank-too-great", "speculation.rank", lambda: check_rank(speculation, target))
        yield from _refused(
            "bits-out-of-range", "speculation.bits_per_weight", lambda: check_bits(speculation, target)
        )
    if source is None:
        return
    if isinstance(speculation, SuffixAutomaton):
        yield from _refused("texts-unusable", "speculation.texts", lambda: check_texts(source))
        return
    key = "speculation.model" if isinstance(speculation, DraftModel) else "speculation.checkpoint"
    if not source.exists():
        trained = "" if isinstance(speculation, DraftModel) else ", or drafthouse train, which makes one"
        right = f"a directory with a drafter for {speculation.method}{trained}"
        yield Finding("model-missing", "error", f"{key}: {source} does not exist{suggestion(source)}", right)
    elif not source.is_dir():
        yield Finding("checkpoint-unusable", "error", f"{key}: {source} is a file; a directory is meant")
    elif isinstance(speculation, DraftModel):
        yield from _draft_model(spec, speculation.model, target)
    elif (planned := trained_section(speculation)) is not None:
        yield from _refused(
            "checkpoint-unusable",
            key,
            (lambda: read_drafter(planned))
            if target is None
            else lambda: plan_graphs(
                planned,
                spec.target.model,
                precision=spec.speculator_precision,
                max_sequence_length=spec.embedded.max_sequence_length,
            ),
        )


def _draft_model(spec: DeploymentSpec, draft: Path, target: Architecture | None) -> Iterator[Finding]:
    key = "speculation.model"

    def check() -> None:
        with completed_draft(draft, spec.target.model) as whole:
            check_draft(whole, spec.target.model)
            load_weights(whole)

    if target is None:
        yield from _refused("checkpoint-unusable", key, lambda: Architecture.from_directory(draft))
        return
    if (yield from _refused("checkpoint-unusable", key, check)):
        return
    yield from _positions(spec, Architecture.from_directory(draft), key)


def _positions(spec: DeploymentSpec, model: Architecture, key: str) -> Iterator[Finding]:
    longest, known = spec.embedded.max_sequence_length, model.max_position_embeddings
    if longest > known:
        yield Finding(
            "sequence-exceeds-positions",
            "error",
            f"engine.max_sequence_length {longest} is beyond the {known} positions of {key}",
            f"max_sequence_length: {known}",
        )


def _refused(name: str, key: str, check: Callable[[], object]) -> Generator[Finding, None, bool]:
    """What a check refuses, as a finding; whether it did as the generator's value."""
    try:
        check()
    except _REFUSALS as error:
        yield Finding(name, "error", f"{key}: {error}")
        return True
    return False
