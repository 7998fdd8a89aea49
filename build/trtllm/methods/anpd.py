"""ANPD: the kit's BLS drafts in front of engines; on the LLM API a drafter of the kit's own does."""

from typing import Any

from build.trtllm.methods.record import (
    DRAFT_TOKENS_EXTERNAL,
    ENGINES,
    LLM_API_A,
    LLM_API_B,
    InEngines,
    InLlmApi,
    Method,
    given,
)
from build.trtllm.resolved import Supported
from deployments.speculation import Anpd


def _user_drafter(section: Anpd) -> dict[str, Any]:
    block = {"drafter": section.method, "draft_length": section.draft_length, "ngram": section.ngram}
    return block | given(max_concurrency=section.max_concurrency)


ANPD = Method(
    section=Anpd,
    support={
        ENGINES: Supported("bls", DRAFT_TOKENS_EXTERNAL),
        **dict.fromkeys((LLM_API_A, LLM_API_B), Supported("user_drafter")),
    },
    draft_tokens=lambda section: section.draft_length,
    engines=InEngines(states_draft_length=True),
    llm_api=InLlmApi(user_drafter=_user_drafter, beside=frozenset({"A", "B"})),
)
