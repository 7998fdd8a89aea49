"""The MLP speculator in PyTorch (arXiv 2404.19124; fms-extras `models/speculator.py`).

With h the target's hidden state after its final norm, t the token just sampled from it, and n stages:

    s = rms(h) / sqrt(2) if scale_input else h
    for stage i:  s = gelu(ln_i(proj_i(s) + (embedding_weight / state_weight) * emb_i(t)))
                  logits = head_i(s);  t = the token chosen from them

`ln_i` divides by the root mean square and scales and shifts; the GELU is the exact one.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from speculators.formats.torch_modules import CheckpointModule, unset
from speculators.mlp_speculator.config import MlpSpeculatorConfig

_EPSILON = 1e-6


class MlpSpeculator(CheckpointModule[MlpSpeculatorConfig]):
    """The stages; weights are NaN until they are loaded or trained."""

    def __init__(self, config: MlpSpeculatorConfig) -> None:
        super().__init__(config)
        stages, width = config.n_predict, config.width
        first = nn.Linear(config.emb_dim, width, bias=False)
        if config.tie_weights:
            shared = nn.Linear(width, width, bias=False)
            self.emb = nn.ModuleList([nn.Embedding(config.vocab_size, width)] * stages)
            self.proj = nn.ModuleList([first] + [shared] * (stages - 1))
            self.ln = nn.ModuleList([ScaledNorm(width)] * stages)
            self.head = nn.ModuleList([nn.Linear(width, config.vocab_size, bias=False)] * stages)
        else:
            self.emb = nn.ModuleList(nn.Embedding(config.vocab_size, width) for _ in range(stages))
            later = (nn.Linear(width, width, bias=False) for _ in range(stages - 1))
            self.proj = nn.ModuleList([first, *later])
            self.ln = nn.ModuleList(ScaledNorm(width) for _ in range(stages))
            self.head = nn.ModuleList(nn.Linear(width, config.vocab_size, bias=False) for _ in range(stages))
        unset(self)

    def initialize(self) -> None:
        """Draw the published starting point: normal of variance 1/D, norms that do nothing."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, 0.0, 1 / math.sqrt(self.config.width))
            elif isinstance(module, ScaledNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def first_state(self, hidden: torch.Tensor) -> torch.Tensor:
        """The state before stage 0 from the target's final hidden states, float ``[..., E]``."""
        return root_mean_square(hidden) / math.sqrt(2) if self.config.scale_input else hidden

    def step(
        self, stage: int, state: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One stage.

        Args:
            stage: which, from 0.
            state: float ``[..., E]`` from `first_state`, or ``[..., D]`` from the stage before.
            tokens: int64 ``[...]``, the token that came before the one this stage predicts.

        Returns:
            The next state, float ``[..., D]``, and logits, float ``[..., V]``.
        """
        following = self.advance(stage, state, self.emb[stage](tokens))
        return following, self.head[stage](following)

    def advance(self, stage: int, state: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """The next state, float ``[..., D]``; like `step`, with the token's embedding, and without logits."""
        ratio = self.config.embedding_weight / self.config.state_weight
        return nn.functional.gelu(self.ln[stage](self.proj[stage](state) + ratio * embedded))

    def forward(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """All stages at all positions, teacher-forced.

        Args:
            hidden: float ``[B, T, E]``, the target's hidden states after its final norm.
            tokens: int64 ``[B, T + n - 1]``; ``tokens[:, t]`` was sampled from ``hidden[:, t]``.

        Returns:
            Logits, float ``[n, B, T, V]``; stage i at position t predicts ``tokens[:, t + i + 1]``.
        """
        state, length, logits = self.first_state(hidden), hidden.shape[1], []
        for stage in range(self.config.n_predict):
            state, scores = self.step(stage, state, tokens[:, stage : stage + length])
            logits.append(scores)
        return torch.stack(logits)


class ScaledNorm(nn.Module):
    """Division by the root mean square, then scale and shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Float ``[..., D]`` in and out."""
        return self.weight * root_mean_square(values) + self.bias


def root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """Float ``[..., D]`` divided by the root of its mean square over the last axis."""
    return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + _EPSILON)
