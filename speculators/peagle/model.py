"""P-EAGLE in PyTorch (arXiv 2602.01469; vllm-project/speculators `models/peagle`).

A block begins like EAGLE-3's draft; its further rows do not wait for the tokens before them, for which a mask stands.
With i the last position whose hidden states the target has given:

    row i          g = fc [hidden states at i]     e = embedding of the token i + 1
    row i + j      g = fc mask_hidden              e = embedding of the mask token       j = 1 .. K - 1

    x = g + attention [input_layernorm(e), hidden_norm(g)];  y = x + mlp(post_attention_layernorm(x))
    further layers are plain ones;  logits of the token i + 2 + j from row i + j = lm_head(norm(y))

Attention is causal: a row of the block sees the rows of the text and those of the block before it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from speculators.eagle.layers import DecoderLayer, KeyValues
from speculators.eagle3.model import Eagle3Layer, FusedDrafter
from speculators.formats.torch_modules import unset
from speculators.peagle.config import PEagleConfig


class PEagle(FusedDrafter[PEagleConfig]):
    """The drafter. Weights are NaN until they are loaded or trained."""

    layers: nn.ModuleList

    def __init__(self, config: PEagleConfig) -> None:
        bias = config.attention_bias
        further = (
            DecoderLayer(config, qkv_bias=bias, o_bias=bias, qk_norm=config.qk_norm)
            for _ in range(1, config.num_hidden_layers)
        )
        super().__init__(config, layers=nn.ModuleList([Eagle3Layer(config), *further]))
        self.mask_hidden = nn.Parameter(torch.empty(1, 1, config.num_features * config.feature_width))
        unset(self)

    @property
    def first_layer(self) -> Eagle3Layer:
        """The one that reads embedding and hidden state."""
        return cast(Eagle3Layer, self.layers[0])

    @property
    def further_layers(self) -> list[DecoderLayer]:
        """The plain ones."""
        return [cast(DecoderLayer, layer) for layer in self.layers[1:]]

    def forward(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        past: list[KeyValues] | None = None,
    ) -> tuple[torch.Tensor, list[KeyValues]]:
        """One pass of the layers.

        Args:
            hidden: float ``[B, T, H]``, from `fuse`: of the target's hidden states, or of `mask_hidden`.
            embedded: float ``[B, T, H]``, the embedding of the token after each position, or of the mask token.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, T, S + T]``; causal.
            past: keys and values of S earlier rows, layer by layer.

        Returns:
            Float ``[B, T, H]``, which `logits` reads, and keys and values of all S + T rows, layer by layer.
        """
        values, rows = self.first_layer(
            hidden, embedded, positions, visible, None if past is None else past[0]
        )
        present = [rows]
        for index, layer in enumerate(self.further_layers, start=1):
            values, rows = layer(values, positions, visible, None if past is None else past[index])
            present.append(rows)
        return (self.norm(values) if self.config.norm_output else values), present
