"""Plain decoding, token by token."""

from build.trtllm.methods.record import Method, support
from build.trtllm.resolved import Supported
from deployments.speculation import NoSpeculation

PLAIN: Method[NoSpeculation] = Method(
    section=NoSpeculation,
    support=support(*3 * (Supported("none"),)),
    draft_tokens=lambda section: 0,
)
