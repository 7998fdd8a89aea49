"""A draft model: a second engine that the kit's BLS calls, or `DraftTarget` of the LLM API."""

from collections.abc import Iterator
from typing import Any

from build.trtllm.methods.record import (
    DRAFT_TOKENS_EXTERNAL,
    ENGINES,
    LLM_API_A,
    LLM_API_B,
    Drafter,
    InEngines,
    InLlmApi,
    Method,
)
from build.trtllm.releases import ReleaseLine, not_in_line
from build.trtllm.resolved import Resolved, Supported
from deployments.findings import Finding
from deployments.speculation import DraftModel


def _arguments(section: DraftModel, line: ReleaseLine) -> dict[str, Any]:
    return {"max_draft_len": section.draft_length, "speculative_model_dir": str(section.model)}


def _logits(resolved: Resolved, section: DraftModel) -> Iterator[Finding]:
    if section.use_draft_logits and resolved.runtime == "llm_api":
        yield not_in_line(
            "the LLM API takes no draft logits (speculation.use_draft_logits)",
            "use_draft_logits: false" + (", or runtime: engines" if resolved.line.name == "A" else ""),
        )


DRAFT_MODEL = Method(
    section=DraftModel,
    support={
        ENGINES: Supported("draft_engine", DRAFT_TOKENS_EXTERNAL),
        **dict.fromkeys((LLM_API_A, LLM_API_B), Supported("in_model")),
    },
    draft_tokens=lambda section: section.draft_length,
    engines=InEngines(states_draft_length=True, accepts_by_logits=lambda section: section.use_draft_logits),
    llm_api=InLlmApi(
        decoding_types={"A": "DraftTarget", "B": "Draft_Target"},
        arguments=_arguments,
        # Line A's is a second model on the host's schedule; line B's runs in one graph with the target.
        beside=frozenset({"A"}),
    ),
    drafter=Drafter("model", takes_padding=True),
    constraints=(_logits,),
)
