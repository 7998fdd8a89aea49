"""What the kit changes in vLLM, as a plugin that every process of vLLM loads (group `vllm.general_plugins`).

On a CPU without Triton's compiler, 0.32.0 spreads temperature, top-k and top-p over a batch's drafted tokens with an
operator that reads and writes integers; what it writes goes into a copy, and the tensor that is used stays as it was
allocated (`_expand_kernel_impl` in `vllm/utils/cpu_triton_utils.py`). So requests that sample, and greedy ones beside
them, are scored by whatever lay in memory as soon as something drafts. Here is the same function in PyTorch.
"""

from __future__ import annotations

import os
from typing import Any

NAME = "drafthouse"
ENTRY_POINT = f"[vllm.general_plugins]\n{NAME} = drafthouse.engine.vllm.plugin:register\n"
_CHOSEN = "VLLM_PLUGINS"


def allow() -> None:
    """Have vLLM load it also where the environment names the plugins that may be loaded (vllm/plugins/__init__.py)."""
    chosen = os.environ.get(_CHOSEN)
    if chosen is not None and NAME not in chosen.split(","):
        os.environ[_CHOSEN] = f"{chosen},{NAME}" if chosen else NAME


def register() -> None:
    """Put the function in its place, on a CPU; elsewhere vLLM's own is right."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.sample import rejection_sampler

    rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: Any, cu_num_tokens: Any, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Any:
    """Each request's value, once for each of its tokens.

    Args:
        x: ``[batch]``.
        cu_num_tokens: ``[batch]``, tokens of this request and those before it.
        num_tokens: of all.
        replace_from, replace_to: a value that is replaced, and by what.
    """
    import torch

    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return values.repeat_interleave(counts.long(), output_size=num_tokens)
