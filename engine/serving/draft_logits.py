"""Drafts that TensorRT-LLM accepts by their distribution: how a draft is drawn, and the logits that go with it.

The target keeps a drafted token x with chance min(1, p(x) / q(x)) and otherwise draws from the rest of p, which gives p
exactly if x was drawn from q. Its q is the softmax of the draft's logits as they come (`acceptDraftTokens` in
cpp/tensorrt_llm/layers/externalDraftTokensLayer.cpp): no temperature, top_k or top_p. So

 - a draft for a request that samples is drawn by temperature alone, and its logits are divided by it; fast logits go
   from engine to engine, where nobody can divide them, so there it is drawn at temperature 1;
 - end tokens are drafted like any other: a draft that stopped before one would hide how likely it is;
 - its seed is not the target's, whose random numbers decide on acceptance.

A greedy request's draft is the likeliest token, and p leaves only one that can be kept.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.request import SamplingParams

_DRAFT = 1  # tells the seeds of drafts from those of the calls that verify them


def drawing(sampling: SamplingParams, done: int, *, fast: bool) -> SamplingParams:
    """How the draft model draws for a request of whose output `done` tokens are there.

    Args:
        sampling: the request's.
        done: tokens of its output.
        fast: whether logits go from engine to engine.
    """
    if sampling.greedy:
        return SamplingParams()
    seed = np.random.SeedSequence([sampling.seed, done, _DRAFT]).generate_state(1, np.uint64)
    return SamplingParams(1.0 if fast else sampling.temperature, seed=int(seed[0]))


def held_against(logits: NDArray[Any], count: int, drawn: SamplingParams, *, fast: bool) -> NDArray[Any]:
    """`draft_logits` of the first `count` tokens of a draft, from its `generation_logits` `[n, V]`.

    Fast logits are one row that says where the target finds them; it is passed on as it is.
    """
    if fast:
        return logits[:1]
    rows = logits[:count]
    if drawn.greedy or drawn.temperature == 1:
        return rows
    # Shifted by their greatest, which no softmax notices, small temperatures do not overflow.
    wide = rows.astype(np.float32)
    divided: NDArray[Any] = (wide - wide.max(axis=-1, keepdims=True)) / np.float32(drawn.temperature)
    return np.maximum(divided, np.finfo(rows.dtype).min).astype(rows.dtype)
