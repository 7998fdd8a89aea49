"""Prompt lookup: TensorRT-LLM's `NGram` on the LLM API, the kit's BLS in front of engines."""

from typing import Any

from build.trtllm.methods.record import FROM_BLS, IN_MODEL, InEngines, InLlmApi, Method, support
from build.trtllm.releases import ReleaseLine
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
    support=support(
        engines=FROM_BLS,
        line_a=IN_MODEL,
        line_b=IN_MODEL,
    ),
    engines=InEngines(states_draft_length=True),
    llm_api=InLlmApi(
        decoding_types={"A": "NGram", "B": "NGram"},
        arguments=_arguments,
        beside=frozenset({"A", "B"}),
        has_probabilities=lambda section: False,
    ),
)
