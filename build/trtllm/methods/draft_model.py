"""A draft model: a second engine that the kit's BLS calls, or `DraftTarget` of the LLM API."""

from collections.abc import Iterator
from typing import Any

from build.trtllm.methods.record import (
    FROM_DRAFT_ENGINE,
    IN_MODEL,
    Drafter,
    InEngines,
    InLlmApi,
    Method,
    support,
    with_weights,
)
from build.trtllm.methods.suffix_automaton import no_enhancer
from build.trtllm.releases import ReleaseLine, not_in_line
from build.trtllm.resolved import Resolved
from deployments.findings import Finding
from deployments.speculation import DraftModel


def _arguments(section: DraftModel, line: ReleaseLine) -> dict[str, Any]:
    return with_weights(section.draft_length, section.model)


def _logits(resolved: Resolved, section: DraftModel) -> Iterator[Finding]:
    if section.use_draft_logits and resolved.runtime == "llm_api":
        yield not_in_line(
            "the LLM API takes no draft logits (speculation.use_draft_logits)",
            "use_draft_logits: false" + (", or runtime: engines" if resolved.line.name == "A" else ""),
        )


DRAFT_MODEL = Method(
    section=DraftModel,
    support=support(
        engines=FROM_DRAFT_ENGINE,
        line_a=IN_MODEL,
        line_b=IN_MODEL,
    ),
    engines=InEngines(states_draft_length=True, accepts_by_logits=lambda section: section.use_draft_logits),
    llm_api=InLlmApi(
        decoding_types={"A": "DraftTarget", "B": "Draft_Target"},
        arguments=_arguments,
        # Line A's is a second model on the host's schedule; line B's runs in one graph with the target.
        beside=frozenset({"A"}),
    ),
    drafter=Drafter("model", takes_padding=True),
    constraints=(_logits, no_enhancer),
)
