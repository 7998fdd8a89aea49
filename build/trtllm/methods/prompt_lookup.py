"""Prompt lookup: TensorRT-LLM's `NGram` on the LLM API, the kit's BLS in front of engines."""

from typing import Any

from build.trtllm.methods.record import (
    DRAFT_TOKENS_EXTERNAL,
    ENGINES,
    LLM_API_A,
    LLM_API_B,
    InEngines,
    InLlmApi,
    Method,
)
from build.trtllm.releases import ReleaseLine
from build.trtllm.resolved import Supported
from deployments.speculation import PromptLookup


def _arguments(section: PromptLookup, line: ReleaseLine) -> dict[str, Any]:
    return {
        "max_draft_len": section.draft_length,
        "max_matching_ngram_size": section.ngram,
        "is_keep_all": section.keep_all,
        "is_use_oldest": section.use_oldest,
        "is_public_pool": section.public_pool,
    }


PROMPT_LOOKUP = Method(
    section=PromptLookup,
    support={
        ENGINES: Supported("bls", DRAFT_TOKENS_EXTERNAL),
        **dict.fromkeys((LLM_API_A, LLM_API_B), Supported("in_model")),
    },
    draft_tokens=lambda section: section.draft_length,
    engines=InEngines(states_draft_length=True),
    llm_api=InLlmApi(
        decoding_types={"A": "NGram", "B": "NGram"},
        arguments=_arguments,
        beside=frozenset({"A", "B"}),
        has_probabilities=lambda section: False,
    ),
)
