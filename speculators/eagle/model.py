"""EAGLE-1 in PyTorch (arXiv 2401.15077; SafeAILab/EAGLE `eagle/model/cnets1.py`).

At position i, with f_i the target's hidden state after its final norm and e_{i+1} the embedding of the *next* token:

    x = fc [e_{i+1}, f_i];  decoder layers (the first without input norm);  the result stands for f_{i+1}

Its logits are those of the target's own output matrix. While drafting, the result is fed back as the next f.
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.eagle.checkpoint import EMBEDDING
from speculators.eagle.config import EagleConfig
from speculators.eagle.layers import DecoderLayer, KeyValues
from speculators.formats.torch_modules import CheckpointModule, unset


class Eagle(CheckpointModule[EagleConfig]):
    """The drafter; the token embedding is the caller's. Weights are NaN until they are loaded or trained."""

    not_loaded = frozenset({EMBEDDING})

    def __init__(self, config: EagleConfig) -> None:
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList(
            DecoderLayer(config, input_norm=index > 0, qkv_bias=config.qkv_bias)
            for index in range(config.num_hidden_layers)
        )
        unset(self)

    def forward(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        past: list[KeyValues] | None = None,
    ) -> tuple[torch.Tensor, list[KeyValues]]:
        """Extrapolate hidden states by one position.

        Args:
            hidden: float ``[B, T, H]``, f of the target, or this method's own output while drafting.
            embedded: float ``[B, T, H]``, the target's embedding of the token after each position.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, T, S + T]``; causal, or the ancestors in a token tree.
            past: keys and values of S earlier rows, layer by layer.

        Returns:
            Float ``[B, T, H]``, and keys and values of all S + T rows, layer by layer.
        """
        values = self.fc(torch.cat([embedded, hidden], dim=-1))
        present = []
        for index, layer in enumerate(self.layers):
            values, rows = layer(values, positions, visible, None if past is None else past[index])
            present.append(rows)
        return values, present
