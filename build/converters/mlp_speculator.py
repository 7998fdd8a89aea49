"""MLP speculators on TensorRT-LLM 1.2.1: no layout computes one exactly, and this says why.

With h the target's final hidden state, t_i tokens, stage i of an MLP speculator is

    s_i = gelu(g_i * rms(P_i s_{i-1} + c E_i[t_i]) + b_i),   logits_i = H_i s_i,   s_{-1} = h,  c > 0

and the candidates are Medusa heads, ``M x_L`` with ``x_l = x_{l-1} + silu(W_l x_{l-1} + b_l)``, ``x_0 = h``, and
ReDrafter, the same blocks on ``[h, s]`` with ``s = silu(W E[t] + U s' + b)``, E the target's embedding.

*Tokens.* Medusa heads see h only. logits_i depends on t_0 .. t_i unless all rows of E_i are one vector (or g_i = 0), so
a speculator that uses its tokens is no set of Medusa heads.

*The norm.* Take tokens away: let all rows of E_0 be zero. Then s_0 depends on h through rms(P_0 h), and for L > 0
rms(P_0 (L h)) = rms(P_0 h) (the norm's epsilon of 1e-6 aside). A Medusa head, and ReDrafter for given tokens, is
continuous at h = 0. If it were equal, f(h) = f(L h) would tend to f(0) as L falls to 0, so f would be constant:
equality holds only where the speculator ignores the hidden state altogether. The target's final norm does hold h on an
ellipsoid, but P_0 h still varies in length there unless P_0 undoes the ellipsoid, and the next obstacle remains.

*The activation.* Take the norm away too, by letting g_0 and b_0 push every unit to one side of 0, where gelu is the
identity or zero in floating point: only then are stage and head both linear, and they agree up to the positive factor
1 / rms, in the order of tokens though not in logits. No trained speculator is there: its units would all be linear.
Elsewhere gelu (the error function) is no finite sum of silu (the logistic function).

*Token only.* With P_0 = 0 the first stage is a table of V rows. ReDrafter can interpolate finitely many points, but
needs blocks about V wide for it, each a V x V matrix: larger than the target, and V^i rows at stage i.

So the exact cases are speculators that ignore what they are conditioned on. For use, a head has to be trained on the
same data: EAGLE-3 for the LLM API, ReDrafter for engines (token-conditioned and recurrent, the nearest), Medusa.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from build.converters.errors import ConversionError
from build.converters.target import check_fit, read_target
from speculators.mlp_speculator.checkpoint import MlpSpeculatorCheckpoint, load_checkpoint


def convert_mlp_speculator(drafter: Path, target: Path) -> None:
    """Check an MLP speculator against its target, and refuse to convert it, naming what comes nearest.

    Args:
        drafter: in the Hugging Face layout `mlp_speculator`.
        target: a TensorRT-LLM checkpoint or a Hugging Face model.

    Raises:
        ConversionError: always; the message says on what this speculator is conditioned and what to train instead.
        CheckpointError: a checkpoint is missing or damaged.
    """
    found = load_checkpoint(drafter)
    about = read_target(target)
    check_fit(drafter, found.config.emb_dim, found.config.vocab_size, about)
    raise ConversionError(
        f"{drafter} is an MLP speculator, which no drafter of TensorRT-LLM 1.2.1 computes exactly: {_reason(found)}. "
        "Train one for this target instead with `drafthouse train`: method eagle3 for the LLM API, redrafter for "
        "TensorRT engines (also conditioned on tokens, so the nearest), or medusa; this speculator itself runs on the "
        "embedded engine and on vLLM"
    )


def reads_tokens(checkpoint: MlpSpeculatorCheckpoint) -> bool:
    """Whether any stage distinguishes the tokens that were drafted before it."""
    embeddings = [values for name, values in checkpoint.tensors.items() if name.startswith("emb.")]
    return any(bool(np.any(values != values[:1])) for values in embeddings)


def reads_hidden_state(checkpoint: MlpSpeculatorCheckpoint) -> bool:
    """Whether the first stage reads the target's hidden state."""
    return bool(np.any(checkpoint.tensors["proj.0.weight"] != 0))


def _reason(checkpoint: MlpSpeculatorCheckpoint) -> str:
    tokens, hidden = reads_tokens(checkpoint), reads_hidden_state(checkpoint)
    if tokens and hidden:
        return (
            "its stages read the drafted tokens, which Medusa heads do not see, and divide by the norm of their "
            "input and apply GELU, which neither Medusa's nor ReDrafter's SiLU blocks do"
        )
    if hidden:
        return (
            "it ignores tokens as Medusa does, but divides by the norm of its input, which no SiLU block does"
        )
    if tokens:
        return (
            "it ignores the hidden state and is a table of tokens, for which ReDrafter would need blocks as wide as "
            "the vocabulary"
        )
    return "it ignores hidden state and tokens, so it proposes the same tokens everywhere and is not worth serving"
