"""Which type matrices are multiplied in."""

from __future__ import annotations

from functools import cache

import torch


def product_type(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies it, else float32.

    On a processor without AVX-512 PyTorch does it number by number: the loss over a draft vocabulary takes 24 times as
    long as in float32, hidden states 5 times (AMD Zen 3, two threads).
    """
    if torch.device(device).type == "cpu" and not _processor_has_bfloat16():
        return torch.float32
    return torch.bfloat16


def in_mixed_precision(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """A context whose matrix products are done in bfloat16, if that is wanted and the device has it."""
    has = product_type(device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and has)


@cache
def _processor_has_bfloat16() -> bool:
    # What PyTorch's own compiler asks; oneDNN knows it of each processor.
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
