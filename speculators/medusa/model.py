"""Medusa heads in PyTorch (arXiv 2401.10774).

Head k: L residual blocks ``x + silu(W x + b)`` on the target's hidden state after its final norm, then a linear map
to the vocabulary: the head's own, or the target's for heads without output matrices.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from speculators.formats.torch_modules import export_arrays, load_arrays, unset
from speculators.medusa.checkpoint import MedusaCheckpoint, hidden_size, vocab_size
from speculators.medusa.config import MedusaConfig


class MedusaHeads(nn.ModuleList):
    """The heads; parameters are named as in the checkpoints. Weights are NaN until they are loaded or trained."""

    def __init__(self, config: MedusaConfig, width: int, vocabulary: int | None) -> None:
        """`vocabulary` None makes heads without output matrices."""
        super().__init__(_head(config, width, vocabulary) for _ in range(config.medusa_num_heads))
        self.config = config
        self.has_outputs = vocabulary is not None
        unset(self)

    @classmethod
    def from_checkpoint(cls, checkpoint: MedusaCheckpoint) -> MedusaHeads:
        """Float32 heads with the weights of a checkpoint.

        Raises:
            CheckpointError: the tensors do not fit the config.
        """
        model = cls(checkpoint.config, hidden_size(checkpoint), vocab_size(checkpoint))
        load_arrays(model, checkpoint.tensors)
        return model

    def to_checkpoint(self) -> MedusaCheckpoint:
        """The weights in their own type."""
        return MedusaCheckpoint(self.config, export_arrays(self))

    def initialize(self, lm_head: torch.Tensor) -> None:
        """The published starting point: blocks that do nothing, outputs equal to the target's ``[V, H]``."""
        with torch.no_grad():  # of a head's linear maps only the output has no bias
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    nn.init.zeros_(module.linear.weight)
                    nn.init.zeros_(module.linear.bias)
                elif isinstance(module, nn.Linear) and module.bias is None:
                    module.weight.copy_(lm_head)

    def states(self, head: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """What a head's output matrix reads, float ``[..., H]``."""
        blocks = cast(nn.Sequential, head)[: self.config.medusa_num_layers]
        return torch.as_tensor(blocks(hidden))

    def output(self, head: nn.Module) -> torch.Tensor | None:
        """The output matrix of a head, ``[V, H]``; None where the target's serves."""
        return torch.as_tensor(cast(nn.Sequential, head)[-1].weight) if self.has_outputs else None

    def forward(self, hidden: torch.Tensor, lm_head: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of all heads.

        Args:
            hidden: float ``[..., H]``, the target's hidden states after its final norm.
            lm_head: float ``[V, H]``, the target's output matrix; needed by heads without their own, and only by them.

        Returns:
            Float ``[heads, ..., V]``; head k at position t predicts the token at t + k + 2.

        Raises:
            ValueError: `lm_head` is missing, or given to heads that have their own.
        """
        if self.has_outputs == (lm_head is not None):
            need = "have output matrices of their own" if self.has_outputs else "need the target's lm_head"
            raise ValueError(f"these Medusa heads {need}")
        outputs = torch.stack([head(hidden) for head in self])
        return outputs if lm_head is None else nn.functional.linear(outputs, lm_head)


class ResidualBlock(nn.Module):
    """``x + silu(W x + b)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Float ``[..., H]`` in and out."""
        return values + nn.functional.silu(self.linear(values))


def _head(config: MedusaConfig, width: int, vocabulary: int | None) -> nn.Sequential:
    blocks: list[nn.Module] = [ResidualBlock(width) for _ in range(config.medusa_num_layers)]
    if vocabulary is not None:
        blocks.append(nn.Linear(width, vocabulary, bias=False))
    return nn.Sequential(*blocks)
