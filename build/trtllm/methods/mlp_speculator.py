"""The MLP speculator, which no release of TensorRT-LLM has."""

from build.trtllm.methods.record import Method, support
from deployments.findings import Unsupported
from deployments.speculation import MlpSpeculator

_NO_HIDDEN_STATES = (
    "the LLM API shows a drafter of one's own no hidden states of the target, which an MLP speculator needs"
)
_EAGLE3 = "method: eagle3, a head on the target's hidden states that is trained with `drafthouse train`"

MLP_SPECULATOR: Method[MlpSpeculator] = Method(
    section=MlpSpeculator,
    support=support(
        engines=Unsupported(
            "no release of TensorRT-LLM loads an MLP speculator, and no head that it has computes the same: every "
            "step of one has its own weights, normalisation and token embedding",
            "method: redrafter, a head that carries state from token to token and is trained with `drafthouse train`",
        ),
        line_a=Unsupported(_NO_HIDDEN_STATES, f"{_EAGLE3}; or method: redrafter with runtime: engines"),
        line_b=Unsupported(_NO_HIDDEN_STATES, _EAGLE3),
    ),
)
