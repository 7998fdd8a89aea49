"""DFlash: block diffusion drafting, which came with 1.3."""

from typing import Any

from build.trtllm.methods.record import (
    ENGINES,
    LLM_API_A,
    LLM_API_B,
    Drafter,
    InLlmApi,
    Method,
    as_list,
    given,
)
from build.trtllm.releases import ReleaseLine
from build.trtllm.resolved import Supported, Unsupported
from deployments.speculation import DFlash


def _arguments(section: DFlash, line: ReleaseLine) -> dict[str, Any]:
    own = {"max_draft_len": section.draft_length, "speculative_model_dir": str(section.model)}
    return own | given(
        mask_token_id=section.mask_token_id, target_layer_ids=as_list(section.target_layer_ids)
    )


DFLASH = Method(
    section=DFlash,
    support={
        ENGINES: Unsupported("DFlash came with 1.3, after the engines", "line: B, or method: redrafter"),
        LLM_API_A: Unsupported("DFlash came with 1.3", "line: B, or method: eagle3"),
        LLM_API_B: Supported("in_model"),
    },
    draft_tokens=lambda section: section.draft_length,
    llm_api=InLlmApi(decoding_types={"B": "DFlash"}, arguments=_arguments),
    drafter=Drafter("head"),
)
