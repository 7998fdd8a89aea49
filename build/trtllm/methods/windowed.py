"""Windowed self-drafting: a second engine of the target with a window of the KV cache, which the kit's BLS calls."""

from collections.abc import Iterator

from build.trtllm.methods.record import FROM_DRAFT_ENGINE, InEngines, Method, support
from build.trtllm.releases import not_in_line
from build.trtllm.resolved import Resolved
from deployments.findings import Finding, Unsupported
from deployments.speculation import WindowedSelfDrafting


def _sinks(resolved: Resolved, section: WindowedSelfDrafting) -> Iterator[Finding]:
    if section.sink_tokens:
        yield not_in_line(
            "trtllm-build of 1.2.1 refuses StreamingLLM, because the attention sink did not survive the sliding "
            f"window's new KV cache (speculation.sink_tokens: {section.sink_tokens})",
            "sink_tokens: 0",
        )


def _embedded_only(resolved: Resolved, section: WindowedSelfDrafting) -> Iterator[Finding]:
    for key in ("choice", "min_context", "lookup"):
        if getattr(section, key) != WindowedSelfDrafting.model_fields[key].default:
            yield not_in_line(
                f"speculation.{key} is the embedded engine's: a second engine always drafts, alone",
                f"no {key}",
            )


WINDOWED = Method(
    section=WindowedSelfDrafting,
    support=support(
        engines=FROM_DRAFT_ENGINE,
        line_a=Unsupported(
            "the LLM API has one KV cache configuration for target and draft, so no window for the draft alone",
            "runtime: engines",
        ),
        line_b=Unsupported(
            "a second engine with a window of its own went with the TensorRT engines in 1.3.0rc21, and the LLM API has "
            "one KV cache configuration for target and draft",
            "line: A with runtime: engines, or method: draft_model",
        ),
    ),
    engines=InEngines(
        states_draft_length=True,
        draft_parameters=lambda section: {"max_attention_window_size": str(section.window)},
        draft_window=lambda section: section.window,
    ),
    drafts_itself=True,
    constraints=(_sinks, _embedded_only),
)
