"""The ReDrafter head in PyTorch (arXiv 2403.09919; ml-recurrent-drafter `modeling_drafter.py`).

With h the target's hidden state after its final norm (fixed while drafting), e the target's embedding of the token
drafted last, and s = 0 at first:

    s = silu(rnn_w e + rnn_u s)      or  s = e + s  without the recurrence
    logits = output(blocks(input_proj [h, s])),   blocks ``x + silu(W x + b)``
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.formats.torch_modules import CheckpointModule, unset
from speculators.medusa.model import ResidualBlock
from speculators.redrafter.config import RedrafterConfig


class Redrafter(CheckpointModule[RedrafterConfig]):
    """The head; weights are NaN until they are loaded or trained."""

    def __init__(self, config: RedrafterConfig) -> None:
        super().__init__(config)
        width, exit_width = config.hidden_size, config.exit_dim
        if config.has_input_projection:
            self.input_proj = nn.Linear(2 * width, exit_width)
        blocks = [ResidualBlock(exit_width) for _ in range(config.num_draft_layers)]
        self.lm_head = nn.Sequential(*blocks, nn.Linear(exit_width, config.vocab_size, bias=False))
        if config.rnn:
            self.rnn_u = nn.Linear(width, width)
            self.rnn_w = nn.Linear(width, width, bias=False)
        unset(self)

    def next_state(self, embedded: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """State after a token, from its embedding in the target and the state before, float ``[..., H]`` each."""
        if not self.config.rnn:
            return embedded + state
        return nn.functional.silu(self.rnn_w(embedded) + self.rnn_u(state))

    def logits(self, hidden: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Scores of the next token, float ``[..., V]``, from context and state, float ``[..., H]`` each."""
        joined = torch.cat([hidden, state], dim=-1)
        return torch.as_tensor(
            self.lm_head(self.input_proj(joined) if self.config.has_input_projection else joined)
        )

    def forward(self, hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """All steps, teacher-forced.

        Args:
            hidden: float ``[B, H]``.
            embedded: float ``[B, n, H]``, the target's embeddings of the token sampled from `hidden` and
                of those after it.

        Returns:
            Logits, float ``[n, B, V]``; step i predicts the token after the i-th embedded one.
        """
        state, logits = torch.zeros_like(hidden), []
        for step in range(embedded.shape[1]):
            state = self.next_state(embedded[:, step], state)
            logits.append(self.logits(hidden, state))
        return torch.stack(logits)
