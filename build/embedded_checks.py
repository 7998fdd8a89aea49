"""What the embedded engine cannot do of a deployment, found before it is compiled."""

from collections.abc import Iterator, Set

from deployments.enhancer import SelfLookupEnhancer
from deployments.findings import Finding
from deployments.spec import DeploymentSpec
from deployments.speculation import LowBit, PlannedSpeculation, WindowedSelfDrafting
from engine.attention_kernels import WHY_NOT, Attention, chosen_kernel
from engine.manifest import EngineError
from engine.methods import EMBEDDED_SETTINGS
from engine.planned import drafting, measures
from speculators.model_free import MODEL_FREE

_POLICIES = ("adaptive", "max_concurrency", "draft_length_schedule", "draft_policy")


def embedded_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """A method without a speculator, and settings that the speculator would not see."""
    if isinstance(spec.speculation, PlannedSpeculation):
        yield from _planned_findings(spec)
        return
    speculation = spec.speculation
    if getattr(speculation, "global_pool", False) and spec.embedded.kv_cache_sharing == "salted":
        yield Finding(
            "pool-without-tenants",
            "error",
            "speculation.global_pool lets what others were answered shape a request's timing, and "
            "engine.kv_cache_sharing: salted is there so that nothing of the kind happens",
            "global_pool: false, or kv_cache_sharing: all",
        )
    if spec.bls_drafts:
        yield from _bls_findings(spec)
        return
    known = ", ".join(sorted(EMBEDDED_SETTINGS))
    if speculation.method not in EMBEDDED_SETTINGS:
        yield Finding(
            "method-without-speculator",
            "error",
            f"speculation.method: {speculation.method} does not run on the embedded engine",
            f"one of {known}, or engine.kind: tensorrt_llm",
        )
        return
    has = {"method", "drafted_by", *EMBEDDED_SETTINGS[speculation.method], *_POLICIES}
    yield from _without_effect(spec, has, "on the embedded engine")
    if measures(spec) and spec.embedded.backend != "openvino":
        yield Finding(
            "policy-without-costs",
            "error",
            "speculation.draft_policy: measured times steps when the engine starts, which says nothing on "
            f"engine.backend: {spec.embedded.backend}, where a step of another size is prepared when it first comes",
            "engine.backend: openvino, or draft_policy: scheduled",
        )
    if isinstance(speculation, WindowedSelfDrafting):
        yield from _windowed_findings(spec, speculation)
    if isinstance(speculation, LowBit):
        yield from _low_bit_findings(spec, speculation)
    lookup: SelfLookupEnhancer | None = getattr(speculation, "suffix_automaton", None)
    if lookup is not None and lookup.global_pool:
        yield Finding(
            "setting-without-effect",
            "error",
            "speculation.suffix_automaton.global_pool has no effect on the embedded engine, which looks a request up "
            "in its own text",
            "global_pool: false",
        )


def _windowed_findings(spec: DeploymentSpec, section: WindowedSelfDrafting) -> Iterator[Finding]:
    """Contexts that never come, and choices of blocks that the attention kernel knows nothing of."""
    length, least = spec.embedded.max_sequence_length, section.least_context
    if least >= length:
        yield Finding(
            "never-drafts",
            "error",
            f"speculation.method: windowed drafts for contexts of {least} tokens and more, but requests end at "
            f"engine.max_sequence_length: {length}",
            f"min_context below {length}, a smaller window, or a greater max_sequence_length",
        )
    if section.choice != "window" and (reason := _not_native(spec)):
        yield Finding(
            "choice-without-weights",
            "error",
            f"speculation.choice: {section.choice} goes by the attention that blocks of the cache get, which only the "
            f"kit's own attention kernel tells, but {reason}",
            "choice: window, or engine.attention_kernel: native",
        )


def _low_bit_findings(spec: DeploymentSpec, section: LowBit) -> Iterator[Finding]:
    """Targets that have no more than what would draft for them, and machines on which four bits are no gain."""
    precision, backend = spec.embedded.precision, spec.embedded.backend
    if backend != "openvino":
        yield Finding(
            "copy-without-cache",
            "error",
            "speculation.method: low_bit drafts on the target's own KV cache, which "
            f"engine.backend: {backend} does not share between networks",
            "engine.backend: openvino",
        )
    elif precision == "int4":
        yield Finding(
            "copy-without-gain",
            "error",
            "speculation.method: low_bit drafts with four-bit weights, which a target of engine.precision: int4 has "
            "itself",
            "engine.precision: fp32 or int8, whose output it then has, or another method",
        )
    elif precision == "int8" and (section.bits_per_weight or 0) >= 8:
        yield Finding(
            "copy-without-gain",
            "error",
            f"speculation.bits_per_weight: {section.bits_per_weight:g} drafts with what a target of engine.precision: "
            "int8 is itself",
            "fewer bits, engine.precision: fp32, or another method",
        )
    elif reason := _not_native(spec):
        unpacked = (
            f"four-bit weights are unpacked to eight bits where the kit's kernel does not run, and {reason}"
        )
        if precision == "int8":
            yield Finding(
                "copy-without-gain",
                "error",
                f"speculation.method: low_bit would draft as slowly as the target decodes: {unpacked}",
                "the kit's kernel, engine.precision: fp32, or another method",
            )
        elif (section.bits_per_weight or 0) < 8:
            yield Finding(
                "copy-in-eight-bits",
                "warning",
                f"speculation.method: low_bit: {unpacked}",
                "the kit's kernel, or bits_per_weight: 8, which loses less and then takes no more",
            )


def _not_native(spec: DeploymentSpec) -> str | None:
    """Why the kit's own kernel does not run."""
    engine = spec.embedded
    if engine.backend != "openvino":
        return f"engine.backend is {engine.backend}"
    if engine.attention_kernel == "openvino":
        return "engine.attention_kernel is openvino"
    try:
        kernel = chosen_kernel(Attention(engine.attention_kernel, engine.kv_cache_precision))
    except EngineError as error:
        return str(error)
    return None if kernel == "native" else WHY_NOT


def _planned_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """What is in the way of serving a plan: the plan itself, or what it has drafts made with."""
    try:
        deployments = drafting(spec)
    except EngineError as error:
        yield Finding("plan-unusable", "error", f"speculation.plan: {error}")
        return
    for each in deployments:
        yield from embedded_findings(each)


def _bls_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """What `tensorrt_llm_bls` cannot draft with, or without."""
    method = spec.speculation.method
    drafting = sorted(["draft_model", *MODEL_FREE])
    if method not in drafting:
        yield Finding(
            "method-without-speculator",
            "error",
            f"speculation.method: {method} cannot be drafted by tensorrt_llm_bls",
            f"one of {', '.join(drafting)}, or drafted_by: engine",
        )
        return
    if not spec.embedded.kv_cache_reuse:
        yield Finding(
            "draft-without-reuse",
            "error",
            "speculation.drafted_by: bls makes every step a call, which would compute the whole context anew",
            "engine.kv_cache_reuse: true, or drafted_by: engine",
        )
    has = {"method", "drafted_by", "adaptive", *EMBEDDED_SETTINGS[method]}
    yield from _without_effect(spec, has - {"texts", "suffix_automaton"}, "with drafted_by: bls")


def _without_effect(spec: DeploymentSpec, has: Set[str], where: str) -> Iterator[Finding]:
    for key in sorted(spec.speculation.model_fields_set - has):
        if getattr(spec.speculation, key) is not None:
            yield Finding(
                "setting-without-effect",
                "error",
                f"speculation.{key} has no effect {where}",
                f"no {key}; {spec.speculation.method} has {', '.join(sorted(has - {'method'}))}",
            )
