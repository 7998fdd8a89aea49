"""EAGLE-3 in PyTorch (arXiv 2503.01840; SafeAILab/EAGLE `eagle/model/cnets.py`).

At position i, with e_{i+1} the embedding of the *next* token:

    g = fc [hidden states of the low, middle and high target layer]      once; the layer's own output while drafting
    x = g + attention [input_layernorm(e_{i+1}), hidden_norm(g)]
    y = x + mlp(post_attention_layernorm(x))                            fed back as the next g
    logits over the draft vocabulary = lm_head(norm(y))

EAGLE 3.1 has three switches more: a norm before `fc`, over all states together (`norm_before_fc`) or each of them
(`fc_norm`), and norm(y) instead of y fed back (`norm_output`).
"""

from __future__ import annotations

import torch
from torch import nn

from speculators.eagle.checkpoint import EMBEDDING
from speculators.eagle.layers import Attention, KeyValues, Mlp, RmsNorm
from speculators.eagle3.config import AnyEagle3, Eagle3Config
from speculators.formats.torch_modules import CheckpointModule, unset


class FusedDrafter(CheckpointModule[AnyEagle3]):
    """What is around the layers: features in, scores of draft tokens out. The token embedding is the caller's.

    Args:
        config: the drafter's.
        layers: its layers, by name.
    """

    not_loaded = frozenset({EMBEDDING})

    d2t: torch.Tensor
    t2d: torch.Tensor

    def __init__(self, config: AnyEagle3, **layers: nn.Module) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.fc = nn.Linear(config.num_features * config.feature_width, width, bias=config.bias)
        self.input_norm = None
        if config.norm_before_fc:
            self.input_norm = RmsNorm(config.num_features * config.feature_width, config.rms_norm_eps)
        norms = config.num_features if config.fc_norm else 0
        self.fc_norm = nn.ModuleList(RmsNorm(config.feature_width, config.rms_norm_eps) for _ in range(norms))
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.norm = RmsNorm(width, config.rms_norm_eps)
        self.lm_head = nn.Linear(width, config.output_size, bias=False)
        if config.has_vocabulary_map:
            self.register_buffer("d2t", torch.zeros(config.output_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        unset(self)

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """Hidden states of the target, float ``[..., F T]`` from its low layer to its high one, to ``[..., H]``."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1)
        return torch.as_tensor(self.fc(features))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scores of the draft tokens, float ``[..., W]``, from the output of `forward`."""
        return torch.as_tensor(self.lm_head(hidden if self.config.norm_output else self.norm(hidden)))

    def target_ids(self, drafted: torch.Tensor) -> torch.Tensor:
        """The target's ids of draft tokens, int64 of any shape."""
        return drafted + self.d2t[drafted] if self.config.has_vocabulary_map else drafted


class Eagle3(FusedDrafter[Eagle3Config]):
    """The drafter. Weights are NaN until they are loaded or trained."""

    midlayer: Eagle3Layer

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__(config, midlayer=Eagle3Layer(config))

    def forward(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        past: KeyValues | None = None,
    ) -> tuple[torch.Tensor, KeyValues]:
        """One pass of the layer.

        Args:
            hidden: float ``[B, T, H]``, from `fuse`, or this method's own output while drafting.
            embedded: float ``[B, T, H]``, the target's embedding of the token after each position.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, T, S + T]``; causal, or the ancestors in a token tree.
            past: keys and values of S earlier rows.

        Returns:
            Float ``[B, T, H]``, what is fed back, and keys and values of all S + T rows.
        """
        values, present = self.midlayer(hidden, embedded, positions, visible, past)
        return (self.norm(values) if self.config.norm_output else values), present


class Eagle3Layer(nn.Module):
    """A Llama decoder layer whose attention reads token embedding and hidden state side by side."""

    def __init__(self, config: Eagle3Config) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        bias = config.attention_bias
        self.self_attn = Attention(config, 2 * width, qkv_bias=bias, o_bias=bias, qk_norm=config.qk_norm)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(width, epsilon)
        self.hidden_norm = RmsNorm(width, epsilon)
        self.post_attention_layernorm = RmsNorm(width, epsilon)

    def forward(
        self,
        hidden: torch.Tensor,
        embedded: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        past: KeyValues | None,
    ) -> tuple[torch.Tensor, KeyValues]:
        """Shapes as in `Eagle3.forward`; the output is the one before the norm."""
        normed = self.hidden_norm(hidden)
        joined = torch.cat([self.input_layernorm(embedded), normed], dim=-1)
        attended, present = self.self_attn(joined, positions, visible, past)
        values = (normed if self.norm_before_residual else hidden) + attended
        return values + self.mlp(self.post_attention_layernorm(values)), present
