"""Attention of training-time test (EAGLE-3, arXiv 2503.01840, section 3.2).

While drafting, a node sees the rows that the target has verified and the nodes above it in its own chain. In training
every position of a sequence starts a chain at once. So at depth d the query of position t sees the depth-1 keys of
positions up to t, and of the depths 2 .. d only its own position's: d - 1 dot products instead of more matrix columns.
"""

from __future__ import annotations

import math

import torch

from speculators.eagle.layers import Attention, KeyValues, inverse_frequencies, rotate


class UnrolledAttention:
    """The attention of one batch, depth after depth."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention
        self._past: list[KeyValues] = []

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """The next depth: float ``[B, T, input width]`` to ``[B, T, H]``."""
        attention, depth = self._attention, len(self._past)
        batch, length, _ = values.shape
        positions = torch.arange(length, device=values.device) + depth
        angles = positions[None, :, None] * inverse_frequencies(attention.config).to(values.device)
        queries, keys, contents = attention.heads(values)
        queries = rotate(queries, angles)
        self._past.append((rotate(keys, angles), contents))
        width, groups = attention.config.head_width, attention.config.key_value_heads
        # Query heads that share a key head are rows of one matrix product.
        grouped = queries.reshape(batch, groups, -1, width) / math.sqrt(width)
        mixed = self._mix(grouped, length)
        heads = mixed.reshape(batch, -1, length, width).transpose(1, 2).flatten(2)
        return torch.as_tensor(attention.o_proj(heads))

    def _mix(self, queries: torch.Tensor, length: int) -> torch.Tensor:
        """Queries ``[B, groups, n T, width]``, n heads of a group one after another."""
        batch, groups, rows, width = queries.shape
        first_keys, first_values = self._past[0]
        scores = queries @ first_keys.transpose(-1, -2)
        future = torch.ones(length, length, dtype=torch.bool, device=queries.device).triu(1)
        scores = scores.view(batch, groups, -1, length, length).masked_fill(future, -math.inf)
        own = queries.view(batch, groups, -1, length, width)
        chain = [(own * keys[:, :, None]).sum(-1, keepdim=True) for keys, _ in self._past[1:]]
        shares = torch.softmax(torch.cat([scores, *chain], -1).float(), -1).to(queries.dtype)
        mixed = shares[..., :length].reshape(batch, groups, rows, length) @ first_values
        mixed = mixed.view(batch, groups, -1, length, width)
        for level, (_, values) in enumerate(self._past[1:]):
            mixed = mixed + shares[..., length + level, None] * values[:, :, None]
        return mixed
