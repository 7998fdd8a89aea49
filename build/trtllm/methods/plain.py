"""Plain decoding, token by token."""

from build.trtllm.methods.record import ENGINES, LLM_API_A, LLM_API_B, Method
from build.trtllm.resolved import Supported
from deployments.speculation import NoSpeculation

PLAIN: Method[NoSpeculation] = Method(
    section=NoSpeculation,
    support=dict.fromkeys((ENGINES, LLM_API_A, LLM_API_B), Supported("none")),
    draft_tokens=lambda section: 0,
)
