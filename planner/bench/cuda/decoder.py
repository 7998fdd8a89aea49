"""A decoder of Llama's architecture with random weights, which lies on the device from the beginning."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import linear, rms_norm, silu

from engine.runner import BLOCK_SIZE, SequenceInput
from engine.torch_attention import PagedCaches, StepAttention, has_kernel
from engine.torch_steps import Step
from planner.bench.cuda.shapes import ModelShape

Tensor = torch.Tensor

_EPSILON = 1e-5


class Decoder:
    """Runs steps over a paged cache that holds random rows.

    Args:
        shape: of the model.
        blocks: of the cache.
        device, dtype: of weights and cache.
    """

    def __init__(self, shape: ModelShape, blocks: int, device: torch.device, dtype: torch.dtype) -> None:
        self.shape, self.device, self.dtype, self.blocks = shape, device, dtype, blocks
        self._random = torch.Generator(device).manual_seed(0)
        inner, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self._splits = [inner, kv, kv]
        self.weights = {
            "embedding": self._matrix(shape.vocabulary, shape.hidden),
            "head": self._matrix(shape.vocabulary, shape.hidden),
            "norm": torch.ones(shape.hidden, device=device, dtype=dtype),
        }
        for layer in range(shape.layers):
            self.weights |= {
                f"{layer}.qkv": self._matrix(inner + 2 * kv, shape.hidden),
                f"{layer}.out": self._matrix(shape.hidden, inner),
                f"{layer}.gate_up": self._matrix(2 * shape.intermediate, shape.hidden),
                f"{layer}.down": self._matrix(shape.hidden, shape.intermediate),
            }
        names = [str(layer) for layer in range(shape.layers)]
        self.caches = PagedCaches(names, blocks, (shape.kv_heads, shape.head_size), device, dtype)
        for rows in self.caches.rows[:, :, : blocks * BLOCK_SIZE]:
            rows.normal_(generator=self._random)
        self._attributes = {
            "kv_heads": shape.kv_heads,
            "head_dim": shape.head_size,
            "scale": shape.head_size**-0.5,
            "sliding_window": 0,
        }
        places = torch.arange(0, shape.head_size, 2, device=device) / shape.head_size
        self._frequencies = shape.rope_base**-places

    def step(self, batch: Sequence[SequenceInput]) -> Step:
        """The inputs of a step."""
        return Step.of(batch, None, padding_row=self.caches.padding_row)

    def logits(self, inputs: Mapping[str, Tensor], groups: int = 1) -> Tensor:
        """Of the wanted rows."""
        with torch.inference_mode():
            return self._logits(inputs, groups)

    def tokens(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The likeliest token of each wanted row: all that leaves the device."""
        return {"tokens": self.logits(inputs).argmax(-1)}

    def _logits(self, inputs: Mapping[str, Tensor], groups: int) -> Tensor:
        weights, shape = self.weights, self.shape
        attention = StepAttention(self.caches, inputs, groups, kernel=has_kernel(self.device))
        angles = inputs["position_ids"][:, None, None] * self._frequencies
        turns = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        hidden = weights["embedding"][inputs["input_ids"]]
        for layer in range(shape.layers):
            new = torch.split(linear(self._normed(hidden), weights[f"{layer}.qkv"]), self._splits, dim=-1)
            queries, keys = (self._turned(part, *turns) for part in new[:2])
            mixed = attention(self._attributes, [queries, keys, new[2]], str(layer))
            hidden = hidden + linear(mixed, weights[f"{layer}.out"])
            gate, up = linear(self._normed(hidden), weights[f"{layer}.gate_up"]).chunk(2, dim=-1)
            hidden = hidden + linear(silu(gate) * up, weights[f"{layer}.down"])
        return linear(self._normed(hidden[inputs["logit_rows"]]), weights["head"])

    def _normed(self, hidden: Tensor) -> Tensor:
        return rms_norm(hidden, (self.shape.hidden,), self.weights["norm"], _EPSILON)

    def _turned(self, part: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        left, right = part.view(len(part), -1, self.shape.head_size).chunk(2, dim=-1)
        turned = torch.cat([left * cosine - right * sine, right * cosine + left * sine], dim=-1)
        return turned.flatten(1)

    def _matrix(self, rows: int, columns: int) -> Tensor:
        matrix = torch.empty((rows, columns), device=self.device, dtype=self.dtype)
        return matrix.normal_(std=1 / math.sqrt(columns), generator=self._random)
