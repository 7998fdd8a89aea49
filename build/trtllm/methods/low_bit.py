"""Low-bit self-drafting, which no release of TensorRT-LLM has."""

from build.trtllm.methods.record import Method, support
from deployments.findings import Unsupported
from deployments.speculation import LowBit

_ONE_PRECISION = "no release of TensorRT-LLM lets the target draft for itself with its weights in four bits"
_DRAFT_MODEL = (
    "method: draft_model, with a quantised checkpoint of the target as its model and a KV cache of its own"
)

LOW_BIT: Method[LowBit] = Method(
    section=LowBit,
    support=support(
        engines=Unsupported(
            _ONE_PRECISION,
            "method: draft_model, with the target itself as its model, engine.draft.quantization: int4_awq, and a KV "
            "cache of its own",
        ),
        line_a=Unsupported(_ONE_PRECISION, _DRAFT_MODEL),
        line_b=Unsupported(_ONE_PRECISION, _DRAFT_MODEL),
    ),
)
