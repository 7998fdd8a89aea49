"""ANPD: the kit's BLS drafts in front of engines; on the LLM API a drafter of the kit's own does."""

from typing import Any

from build.trtllm.methods.record import FROM_BLS, InEngines, InLlmApi, Method, given, support
from build.trtllm.resolved import Supported
from deployments.speculation import Anpd


def _user_drafter(section: Anpd) -> dict[str, Any]:
    block = {"drafter": section.method, "draft_length": section.draft_length, "ngram": section.ngram}
    return block | given(max_concurrency=section.max_concurrency)


ANPD = Method(
    section=Anpd,
    support=support(
        engines=FROM_BLS,
        line_a=Supported("user_drafter"),
        line_b=Supported("user_drafter"),
    ),
    engines=InEngines(states_draft_length=True),
    llm_api=InLlmApi(user_drafter=_user_drafter, beside=frozenset({"A", "B"})),
)
