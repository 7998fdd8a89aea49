"""PARD: a parallel draft model, which came with 1.3."""

from typing import Any

from build.trtllm.methods.record import ENGINES, LLM_API_A, LLM_API_B, Drafter, InLlmApi, Method, given
from build.trtllm.methods.suffix_automaton import enhanced_has_probabilities, enhancer_arguments
from build.trtllm.releases import ReleaseLine
from build.trtllm.resolved import Supported, Unsupported
from deployments.speculation import Pard


def _arguments(section: Pard, line: ReleaseLine) -> dict[str, Any]:
    own = {"max_draft_len": section.draft_length, "speculative_model_dir": str(section.model)}
    return own | given(mask_token_id=section.mask_token_id) | enhancer_arguments(section)


PARD = Method(
    section=Pard,
    support={
        ENGINES: Unsupported("PARD came with 1.3, after the engines", "line: B, or method: draft_model"),
        LLM_API_A: Unsupported("PARD came with 1.3", "line: B, or method: draft_model"),
        LLM_API_B: Supported("in_model"),
    },
    draft_tokens=lambda section: section.draft_length,
    llm_api=InLlmApi(
        decoding_types={"B": "PARD"}, arguments=_arguments, has_probabilities=enhanced_has_probabilities
    ),
    drafter=Drafter("model"),
)
