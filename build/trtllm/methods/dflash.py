"""DFlash: block diffusion drafting, which came with 1.3."""

from typing import Any

from build.trtllm.methods.record import (
    IN_MODEL,
    Drafter,
    InLlmApi,
    Method,
    as_list,
    given,
    support,
    with_weights,
)
from build.trtllm.releases import ReleaseLine
from deployments.findings import Unsupported
from deployments.speculation import DFlash


def _arguments(section: DFlash, line: ReleaseLine) -> dict[str, Any]:
    own = with_weights(section.draft_length, section.model)
    return own | given(
        mask_token_id=section.mask_token_id, target_layer_ids=as_list(section.target_layer_ids)
    )


DFLASH = Method(
    section=DFlash,
    support=support(
        engines=Unsupported("DFlash came with 1.3, after the engines", "line: B, or method: redrafter"),
        line_a=Unsupported("DFlash came with 1.3", "line: B, or method: eagle3"),
        line_b=IN_MODEL,
    ),
    llm_api=InLlmApi(decoding_types={"B": "DFlash"}, arguments=_arguments),
    drafter=Drafter("head"),
)
