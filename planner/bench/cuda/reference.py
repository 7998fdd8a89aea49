"""Attention of a step as it should be, row by row in float64 on the CPU, beside what the PyTorch runner makes of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from engine.runner import BLOCK_SIZE, SequenceInput
from engine.torch_attention import PagedCaches, StepAttention
from engine.torch_steps import Step

Tensor = torch.Tensor
MakeAttention = Callable[[PagedCaches, Mapping[str, Tensor], int], StepAttention]

_NAME = "0"


@dataclass(frozen=True)
class HeadShape:
    """Of attention: key heads, query heads of each, size of a head, rows of a sliding window or 0."""

    heads: int = 2
    share: int = 3
    width: int = 16
    window: int = 0

    @property
    def attributes(self) -> dict[str, Any]:
        """As a graph's operator has them."""
        return {
            "kv_heads": self.heads,
            "head_dim": self.width,
            "scale": self.width**-0.5,
            "sliding_window": self.window,
        }


class AttentionCase:
    """Random rows of a cache and of a step's tokens.

    Args:
        batch: the step.
        shape: of attention.
        blocks: of the cache. Rows of it that the step may not read before it has written them are NaN.
        device, dtype: of the cache.
        seed: of the numbers.
    """

    def __init__(
        self,
        batch: Sequence[SequenceInput],
        shape: HeadShape,
        blocks: int,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        self.batch, self.shape = batch, shape
        random = torch.Generator().manual_seed(seed)
        self._step = Step.of(batch, None, padding_row=blocks * BLOCK_SIZE)
        tokens = self._step.tokens
        sizes = (shape.heads * shape.share, shape.heads, shape.heads)
        self._new = [torch.randn((tokens, heads, shape.width), generator=random).to(dtype) for heads in sizes]
        rows = torch.full((2, blocks * BLOCK_SIZE, shape.heads, shape.width), torch.nan, dtype=dtype)
        held = torch.unique(torch.cat([_places(item, range(item.past)) for item in batch]))
        rows[:, held] = torch.randn((2, len(held), shape.heads, shape.width), generator=random).to(dtype)
        self._rows = rows
        self.caches = PagedCaches([_NAME], blocks, (shape.heads, shape.width), device, dtype)
        self.caches.rows[0, :, : blocks * BLOCK_SIZE] = rows.to(device)

    def found(self, attention: MakeAttention) -> Tensor:
        """[tokens, query heads, width] of an attention."""
        device = self.caches.rows.device
        inputs = {name: torch.from_numpy(values).to(device) for name, values in self._step.inputs.items()}
        new = []
        for part in self._new:
            filled = torch.zeros((len(inputs["input_ids"]), part[0].numel()), dtype=part.dtype)
            filled[: len(part)] = part.flatten(1)
            new.append(filled.to(device))
        mixed = attention(self.caches, inputs, self._step.groups)(self.shape.attributes, new, _NAME)
        return mixed[: self._step.tokens].view(self._new[0].shape).cpu()

    def expected(self) -> Tensor:
        """The same in float64, of the rows that each token sees by the definition."""
        queries, *new = (part.double() for part in self._new)
        found, first = [], 0
        for item in self.batch:
            cached = self._rows[:, _places(item, range(item.past))].double()
            for token in range(len(item.tokens)):
                path = [first + each for each in _path(item.parents, token)]
                keys, values = (torch.cat([old, part[path]]) for old, part in zip(cached, new, strict=True))
                if self.shape.window:
                    keys, values = keys[-self.shape.window :], values[-self.shape.window :]
                found.append(self._row(queries[first + token], keys, values))
            first += len(item.tokens)
        return torch.stack(found)

    def error(self, attention: MakeAttention) -> float:
        """Norm of the difference to what is expected, by the norm of that."""
        expected = self.expected()
        return float((self.found(attention).double() - expected).norm() / expected.norm())

    def _row(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        grouped = queries.view(self.shape.heads, self.shape.share, self.shape.width)
        scores = torch.einsum("hgd,shd->hgs", grouped, keys) * self.shape.width**-0.5
        return torch.einsum("hgs,shd->hgd", scores.softmax(-1), values).reshape(queries.shape)


def _places(item: SequenceInput, rows: range) -> Tensor:
    at = torch.tensor(rows, dtype=torch.int64)
    return torch.tensor(item.blocks)[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE


def _path(parents: Sequence[int] | None, token: int) -> list[int]:
    """From the root down to a token of a tree or a chain."""
    path = [token]
    while path[0]:
        path.insert(0, path[0] - 1 if parents is None else parents[path[0]])
    return path
