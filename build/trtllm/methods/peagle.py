"""P-EAGLE, which TensorRT-LLM does not have."""

from build.trtllm.methods.record import Method, support
from deployments.findings import Unsupported
from deployments.speculation import PEagle

_ABSENT = "TensorRT-LLM has no P-EAGLE"

PEAGLE: Method[PEagle] = Method(
    section=PEagle,
    support=support(
        engines=Unsupported(_ABSENT, "runtime: llm_api with method: eagle3, or method: medusa"),
        line_a=Unsupported(_ABSENT, "method: eagle3 with a head trained for it"),
        line_b=Unsupported(
            _ABSENT, "method: eagle3; or method: dflash or pard, which draft in parallel there"
        ),
    ),
)
