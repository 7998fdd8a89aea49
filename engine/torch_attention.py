"""Paged attention on PyTorch: all new rows of a request share one read of its cache.

The cache of a layer is [rows of all blocks, key heads, head size]. The query heads of a key head, times the new rows
of a request, are rows of one matrix, so keys and values are read once for all of them: by the kernel of
`engine.torch_kernel` on a CUDA device, elsewhere and for parts of prompts by PyTorch, which gathers them first.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from engine.runner import BLOCK_SIZE
from engine.torch_steps import GROUP_INPUTS

Tensor = torch.Tensor


class PagedCaches:
    """Keys and values of all layers: [layers, 2, rows of all blocks, key heads, head size].

    Args:
        names: of the key caches, in the order of layers.
        num_blocks: that requests can lie in.
        heads: key heads and the size of a head.

    Attributes:
        padding_row: where padding is written.
        empty_row: zeros, which nobody writes to: it is read in place of rows that were never written, since those may
            hold anything, and 0 times that is not always 0.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_blocks: int,
        heads: tuple[int, int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._layers = {name: layer for layer, name in enumerate(names)}
        self.padding_row = num_blocks * BLOCK_SIZE
        self.empty_row = self.padding_row + BLOCK_SIZE
        shape = (len(names), 2, self.empty_row + BLOCK_SIZE, *heads)
        self.rows = torch.zeros(shape, dtype=dtype, device=device)

    def __getitem__(self, name: str) -> tuple[Tensor, Tensor]:
        """Keys and values of the layer whose key cache has this name."""
        keys, values = self.rows[self._layers[name]]
        return keys, values

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows of all layers, all at once."""
        begins, ends = torch.tensor([sources, targets], device=self.rows.device)
        self.rows[:, :, ends] = self.rows[:, :, begins]


class StepAttention:
    """The attention of one step; see `engine.torch_operators.Attention`.

    Args:
        caches: of the network.
        inputs: see `engine.torch_steps.Step`, on the device. What they say is worked out once for all layers.
        groups: how many there are.
        kernel: whether `engine.torch_kernel` serves where it can.
    """

    def __init__(
        self, caches: PagedCaches, inputs: Mapping[str, Tensor], groups: int, *, kernel: bool
    ) -> None:
        self._caches, self._inputs = caches, inputs
        self._groups = [
            _Group(
                {name: inputs[f"{number}.{name}"] for name in GROUP_INPUTS}, caches.empty_row, kernel=kernel
            )
            for number in range(groups)
        ]

    def __call__(self, attributes: Mapping[str, Any], new: Sequence[Tensor], name: str) -> Tensor:
        """Write the new rows, then let every row see its past and its ancestors."""
        queries, keys, values = new
        heads, width = attributes["kv_heads"], attributes["head_dim"]
        layer = self._caches[name]
        for cache, part in zip(layer, (keys, values), strict=True):
            cache[self._inputs["places"]] = part.reshape(-1, heads, width).to(cache.dtype)
        grouped = queries.reshape(len(queries), heads, -1, width).to(layer[0].dtype)
        mixed = [group.attend(grouped, layer, attributes) for group in self._groups]
        return torch.cat(mixed)[self._inputs["token_rows"]]


def has_kernel(device: torch.device) -> bool:
    """Whether `engine.torch_kernel` serves on a device; PyTorch for CUDA comes with what it needs, but for Windows."""
    return device.type == "cuda" and find_spec("triton") is not None


class _Group:
    """Attention of a group of requests (`engine.torch_steps.Group`)."""

    def __init__(self, of: Mapping[str, Tensor], empty_row: int, *, kernel: bool) -> None:
        self._of, self._kernel = of, kernel
        self._masks: dict[int, Tensor] = {}
        self._empty_row = empty_row

    def attend(self, queries: Tensor, layer: tuple[Tensor, Tensor], attributes: Mapping[str, Any]) -> Tensor:
        """Queries [tokens, key heads, group, width] to [requests * rows, heads * width]."""
        scale, window = attributes["scale"], attributes["sliding_window"]
        if self._kernel:
            from engine import torch_kernel

            if torch_kernel.fits(self._of["begins"].shape[1], queries.shape[2], queries.shape[3]):
                return torch_kernel.attend(self._of, queries, layer, scale=scale, window=window)
        return self._gathered(queries, layer, scale, window)

    def _gathered(self, queries: Tensor, layer: tuple[Tensor, Tensor], scale: float, window: int) -> Tensor:
        """With `scaled_dot_product_attention`: a request's rows are gathered, once for all that see them."""
        requests, rows = self._of["begins"].shape
        _, heads, share, width = queries.shape
        own = queries[self._of["tokens"]].permute(0, 2, 3, 1, 4)
        keys, values = (part[self._rows].transpose(1, 2) for part in layer)
        mixed = torch.nn.functional.scaled_dot_product_attention(
            own.reshape(requests, heads, share * rows, width),
            keys,
            values,
            attn_mask=self._mask(window, share),
            scale=scale,
        )
        mixed = mixed.view(requests, heads, share, rows, width).permute(0, 3, 1, 2, 4)
        return mixed.reshape(requests * rows, -1)

    @cached_property
    def _place(self) -> Tensor:
        """Places of a list of blocks."""
        return torch.arange(self._of["tables"].shape[1] * BLOCK_SIZE, device=self._of["tables"].device)

    @cached_property
    def _rows(self) -> Tensor:
        """The cache row at each place of a request's list of blocks, [requests, places]."""
        of, place = self._of, self._place
        block = of["tables"][:, place // BLOCK_SIZE]
        written = place < (of["past"] + of["counts"])[:, None]
        return torch.where(written, block * BLOCK_SIZE + place % BLOCK_SIZE, self._empty_row)

    def _mask(self, window: int, share: int) -> Tensor:
        """What each row sees, [requests, 1, share * rows, places]: `_seen`, for `share` query heads."""
        if window not in self._masks:
            seen = self._seen(window)[:, None].expand(-1, share, -1, -1)
            self._masks[window] = seen.flatten(1, 2)[:, None]
        return self._masks[window]

    def _seen(self, window: int) -> Tensor:
        """[requests, rows, places]; of a sliding window, if there is one."""
        of, place = self._of, self._place
        begins, past = of["begins"], of["past"][:, None]
        new = (place - past).clamp(0, begins.shape[1] - 1)  # the new row at each place, if there is one
        cached, is_new = place < past, place < past + of["counts"][:, None]
        begin, end = begins.gather(1, new)[:, None], of["ends"].gather(1, new)[:, None]
        row = begins[..., None]
        seen = cached[:, None] | (is_new[:, None] & (begin <= row) & (row < end))
        if window:
            depth = torch.where(cached, place - past, of["depths"].gather(1, new))
            seen &= depth[:, None] > of["depths"][..., None] - window
        return seen
