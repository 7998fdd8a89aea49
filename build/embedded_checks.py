"""What the embedded engine cannot do of a deployment, found before it is compiled."""

from collections.abc import Iterator, Set

from deployments.findings import Finding
from deployments.spec import DeploymentSpec
from deployments.speculation import SelfLookupEnhancer
from engine.methods import EMBEDDED_SETTINGS
from speculators.model_free import MODEL_FREE

_POLICIES = ("adaptive", "max_concurrency", "draft_length_schedule")


def embedded_findings(spec: DeploymentSpec) -> Iterator[Finding]:
    """A method without a speculator, and settings that the speculator would not see."""
    speculation = spec.speculation
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
    lookup: SelfLookupEnhancer | None = getattr(speculation, "suffix_automaton", None)
    if lookup is not None and lookup.global_pool:
        yield Finding(
            "setting-without-effect",
            "error",
            "speculation.suffix_automaton.global_pool has no effect on the embedded engine, which looks a request up "
            "in its own text",
            "global_pool: false",
        )


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
    yield from _without_effect(
        spec, {"method", "drafted_by", "adaptive", *EMBEDDED_SETTINGS[method]}, "with drafted_by: bls"
    )


def _without_effect(spec: DeploymentSpec, has: Set[str], where: str) -> Iterator[Finding]:
    for key in sorted(spec.speculation.model_fields_set - has):
        if getattr(spec.speculation, key) is not None:
            yield Finding(
                "setting-without-effect",
                "error",
                f"speculation.{key} has no effect {where}",
                f"no {key}; {spec.speculation.method} has {', '.join(sorted(has - {'method'}))}",
            )
