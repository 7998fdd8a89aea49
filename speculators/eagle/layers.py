"""What EAGLE drafters are made of: norm, rotary attention over a cache, gated MLP, and a Llama layer of these."""

from __future__ import annotations

import math

import torch
from torch import nn

from speculators.eagle.config import LlamaDrafterConfig

KeyValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, float ``[B, key heads, S, head width]`` each, keys rotated."""


class RmsNorm(nn.Module):
    """Division by the root mean square over the last axis, then scale; computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Float ``[..., H]`` in and out."""
        wide = values.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * wide.to(values.dtype)


class Mlp(nn.Module):
    """``down(silu(gate x) * up x)``."""

    def __init__(self, config: LlamaDrafterConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Float ``[..., H]`` in and out."""
        return torch.as_tensor(
            self.down_proj(nn.functional.silu(self.gate_proj(values)) * self.up_proj(values))
        )


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, reading `input_width` columns.

    With `qk_norm`, queries and keys are normed head by head before they are rotated, as in Qwen3.
    """

    def __init__(
        self,
        config: LlamaDrafterConfig,
        input_width: int,
        *,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        queries = config.num_attention_heads * config.head_width
        keys = config.key_value_heads * config.head_width
        self.q_proj = nn.Linear(input_width, queries, bias=qkv_bias)
        self.k_proj = nn.Linear(input_width, keys, bias=qkv_bias)
        self.v_proj = nn.Linear(input_width, keys, bias=qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=o_bias)
        self.q_norm = RmsNorm(config.head_width, config.rms_norm_eps) if qk_norm else None
        self.k_norm = RmsNorm(config.head_width, config.rms_norm_eps) if qk_norm else None

    def forward(
        self, values: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, past: KeyValues | None
    ) -> tuple[torch.Tensor, KeyValues]:
        """Attend from T new rows to S cached ones and to the new ones.

        Args:
            values: float ``[B, T, input width]``.
            positions: int64 ``[B, T]``.
            visible: bool ``[B, T, S + T]``; which row sees which.
            past: the cache of S rows; None for S = 0.

        Returns:
            Float ``[B, T, H]``, and keys and values of all S + T rows.
        """
        angles = positions[..., None].float() * inverse_frequencies(self.config).to(positions.device)
        keys, contents = self.keys_and_values(values)
        queries, present = rotate(self.queries(values), angles), (rotate(keys, angles), contents)
        if past is not None:
            present = (torch.cat([past[0], present[0]], dim=2), torch.cat([past[1], present[1]], dim=2))
        group = self.config.num_attention_heads // self.config.key_value_heads
        keys, contents = (part.repeat_interleave(group, dim=1) for part in present)
        mixed = nn.functional.scaled_dot_product_attention(
            queries, keys, contents, attn_mask=visible[:, None]
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), present

    def queries(self, values: torch.Tensor) -> torch.Tensor:
        """Of rows ``[B, T, input width]``, not rotated: ``[B, heads, T, head width]``."""
        queries = self._split(self.q_proj(values))
        return queries if self.q_norm is None else torch.as_tensor(self.q_norm(queries))

    def keys_and_values(self, values: torch.Tensor) -> KeyValues:
        """Of rows ``[B, T, input width]``, not rotated: ``[B, key heads, T, head width]`` each."""
        keys = self._split(self.k_proj(values))
        return keys if self.k_norm is None else self.k_norm(keys), self._split(self.v_proj(values))

    def _split(self, values: torch.Tensor) -> torch.Tensor:
        batch, rows, _ = values.shape
        return values.view(batch, rows, -1, self.config.head_width).transpose(1, 2)


class DecoderLayer(nn.Module):
    """A Llama decoder layer; EAGLE-1's first one has no input norm."""

    def __init__(
        self,
        config: LlamaDrafterConfig,
        *,
        input_norm: bool = True,
        qkv_bias: bool = False,
        o_bias: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        width, epsilon = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, width, qkv_bias=qkv_bias, o_bias=o_bias, qk_norm=qk_norm)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(width, epsilon) if input_norm else nn.Identity()
        self.post_attention_layernorm = RmsNorm(width, epsilon)

    def forward(
        self, values: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor, past: KeyValues | None
    ) -> tuple[torch.Tensor, KeyValues]:
        """Float ``[B, T, H]`` in and out; the rest as in `Attention.forward`."""
        attended, present = self.self_attn(self.input_layernorm(values), positions, visible, past)
        values = values + attended
        return values + self.mlp(self.post_attention_layernorm(values)), present


def inverse_frequencies(config: LlamaDrafterConfig) -> torch.Tensor:
    """Angle per position of each pair of columns, float32 ``[head width / 2]``, as Transformers computes it.

    `llama3` leaves short wavelengths alone, divides long ones by `factor`, and interpolates in between.
    """
    width = config.head_width
    plain = 1.0 / config.rope_theta ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
    scaling = config.rope_scaling or {}
    if config.rope_type == "linear":
        return plain / float(scaling["factor"])
    if config.rope_type == "llama3":
        low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
        turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
        return plain * (kept + (1 - kept) / float(scaling["factor"]))
    return plain


def rotate(values: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, first half of the columns paired with the second.

    Args:
        values: float ``[B, heads, T, head width]``.
        angles: float ``[B, T, head width / 2]``.
    """
    cosine = angles.cos().repeat(1, 1, 2)[:, None].to(values.dtype)
    sine = angles.sin().repeat(1, 1, 2)[:, None].to(values.dtype)
    first, second = values.chunk(2, dim=-1)
    return values * cosine + torch.cat([-second, first], dim=-1) * sine
