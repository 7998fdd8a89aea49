"""Attention of training-time test (EAGLE-3, arXiv 2503.01840, section 3.2).

While drafting, a node sees the rows that the target has verified and the nodes above it in its own chain. In training
many positions of a sequence start a chain at once. So at depth d the query of position t sees the depth-1 keys of
positions up to t, and of the depths 2 .. d only its own position's: d - 1 dot products instead of more matrix columns.

Only positions from which a learned token is drafted start one. A prompt is read for its keys, and drafted from nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from speculators.eagle.layers import Attention, KeyValues, inverse_frequencies, rotate


@dataclass(frozen=True, slots=True)
class Roots:
    """The positions whose chains draft a learned token.

    Attributes:
        position: int64 ``[B, R]``, ascending; sequences with fewer than R are filled up with position 0.
        place: int64 ``[B, T]``: where a position stands in `position`.
    """

    position: torch.Tensor
    place: torch.Tensor

    @classmethod
    def reaching(cls, learned: torch.Tensor, depth: int) -> Roots:
        """Of chains of `depth` tokens, where t drafts the tokens t + 2 to t + depth + 1.

        `learned` is bool ``[B, T]``.
        """
        chosen = torch.zeros_like(learned)
        for ahead in range(2, depth + 2):
            chosen[:, :-ahead] |= learned[:, ahead:]
        place = (chosen.cumsum(1) - 1).clamp(min=0)
        position = place.new_zeros(len(chosen), max(1, int(chosen.sum(1).max())))
        sequence, found = chosen.nonzero(as_tuple=True)
        position[sequence, place[sequence, found]] = found
        return cls(position, place)

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """Of all rows, ``[B, T, ...]``, those of the roots, ``[B, R, ...]``."""
        return values[torch.arange(len(values), device=values.device)[:, None], self.position]


class UnrolledAttention:
    """The attention of one batch, depth after depth."""

    def __init__(self, attention: Attention, roots: Roots) -> None:
        self._attention, self._roots = attention, roots
        self._past: list[KeyValues] = []

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """Depth 1 of the roots: float ``[B, T, input width]`` of all rows to ``[B, R, H]``."""
        self._remember(values, self._every_row(values))
        return self._attend(self._roots.of(values), self._roots.position)

    def read_all(self, values: torch.Tensor) -> torch.Tensor:
        """Depth 1 of all rows, which a further layer reads: float ``[B, T, input width]`` to ``[B, T, H]``."""
        positions = self._every_row(values)
        self._remember(values, positions)
        return self._attend(values, positions)

    def go_on(self, values: torch.Tensor) -> torch.Tensor:
        """The next depth: float ``[B, R, input width]`` to ``[B, R, H]``."""
        positions = self._roots.position + len(self._past)
        self._remember(values, positions)
        return self._attend(values, positions)

    def _every_row(self, values: torch.Tensor) -> torch.Tensor:
        return torch.arange(values.shape[1], device=values.device)[None]

    def _remember(self, values: torch.Tensor, positions: torch.Tensor) -> None:
        keys, contents = self._attention.keys_and_values(values)
        self._past.append((rotate(keys, self._angles(positions)), contents))

    def _angles(self, positions: torch.Tensor) -> torch.Tensor:
        return positions[..., None] * inverse_frequencies(self._attention.config).to(positions.device)

    def _attend(self, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        attention = self._attention
        batch, length, _ = values.shape
        queries = rotate(attention.queries(values), self._angles(positions))
        width, groups = attention.config.head_width, attention.config.key_value_heads
        # Query heads that share a key head are rows of one matrix product.
        grouped = queries.reshape(batch, groups, -1, width) / math.sqrt(width)
        mixed = self._mix(grouped, positions - (len(self._past) - 1))
        heads = mixed.reshape(batch, -1, length, width).transpose(1, 2).flatten(2)
        return torch.as_tensor(attention.o_proj(heads))

    def _mix(self, queries: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
        """Queries ``[B, groups, n R, width]``, n heads of a group one after another, of the roots ``[B or 1, R]``."""
        batch, groups, rows, width = queries.shape
        first_keys, first_values = self._past[0]
        length, count = first_keys.shape[2], roots.shape[1]
        scores = (queries @ first_keys.transpose(-1, -2)).view(batch, groups, -1, count, length)
        future = torch.arange(length, device=queries.device) > roots[..., None]
        scores = scores.masked_fill(future[:, None, None], -math.inf)
        own = queries.view(batch, groups, -1, count, width)
        chain = [(own * keys[:, :, None]).sum(-1, keepdim=True) for keys, _ in self._past[1:]]
        shares = torch.softmax(torch.cat([scores, *chain], -1).float(), -1).to(queries.dtype)
        mixed = shares[..., :length].reshape(batch, groups, rows, length) @ first_values
        mixed = mixed.view(batch, groups, -1, count, width)
        for level, (_, values) in enumerate(self._past[1:]):
            mixed = mixed + shares[..., length + level, None] * values[:, :, None]
        return mixed
