"""PARD: a parallel draft model, which came with 1.3."""

from typing import Any

from build.trtllm.methods.record import IN_MODEL, Drafter, InLlmApi, Method, given, support, with_weights
from build.trtllm.methods.suffix_automaton import (
    enhanced_has_probabilities,
    enhancer_arguments,
    enhancer_constraints,
)
from build.trtllm.releases import ReleaseLine
from deployments.findings import Unsupported
from deployments.speculation import Pard


def _arguments(section: Pard, line: ReleaseLine) -> dict[str, Any]:
    own = with_weights(section.draft_length, section.model)
    return own | given(mask_token_id=section.mask_token_id) | enhancer_arguments(section)


PARD = Method(
    section=Pard,
    support=support(
        engines=Unsupported("PARD came with 1.3, after the engines", "line: B, or method: draft_model"),
        line_a=Unsupported("PARD came with 1.3", "line: B, or method: draft_model"),
        line_b=IN_MODEL,
    ),
    llm_api=InLlmApi(
        decoding_types={"B": "PARD"}, arguments=_arguments, has_probabilities=enhanced_has_probabilities
    ),
    drafter=Drafter("model"),
    constraints=(enhancer_constraints,),
)
