"""Low-bit self-drafting, which no release of TensorRT-LLM has: a second engine has a KV cache of its own."""

from build.trtllm.methods.record import Method, support
from deployments.findings import Unsupported
from deployments.speculation import LowBit

_OWN_CACHE = "TensorRT-LLM loads the target's weights once, and no second network reads or writes the target's KV cache"
_DRAFT_MODEL = (
    "method: draft_model, with a quantised checkpoint of the target as its model and a KV cache of its own"
)

LOW_BIT: Method[LowBit] = Method(
    section=LowBit,
    support=support(
        engines=Unsupported(
            _OWN_CACHE,
            "method: draft_model, with the target itself as its model, engine.draft.quantization: int4_awq, and a KV "
            "cache of its own",
        ),
        line_a=Unsupported(_OWN_CACHE, _DRAFT_MODEL),
        line_b=Unsupported(_OWN_CACHE, _DRAFT_MODEL),
    ),
)
