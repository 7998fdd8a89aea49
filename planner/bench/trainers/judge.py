"""Acceptance length of an EAGLE-3 checkpoint, whoever trained it, on held-out greedy output of the target.

The chain that greedy decoding would run is read off the drafter's guesses along the true text, as in training
(`speculators.training.acceptance`); the interval is a bootstrap over the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speculators.data.errors import DataError
from speculators.data.samples import Sample
from speculators.eagle3.checkpoint import load_checkpoint, target_ids
from speculators.eagle3.model import Eagle3
from speculators.training.acceptance import Acceptance
from speculators.training.features import OnlineFeatures, collate
from speculators.training.target import FrozenTarget
from speculators.training.unrolled import Roots, UnrolledAttention

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Judgement:
    """Acceptance length with its 95 % interval, and the share accepted at each position."""

    length: float
    interval: tuple[float, float]
    by_position: list[float | None]


def judge(
    directory: Path,
    target: FrozenTarget,
    layers: tuple[int, ...],
    held_out: Sequence[Sample],
    *,
    depth: int,
) -> Judgement:
    """Measure a checkpoint.

    Args:
        directory: in any layout that `speculators.eagle3.checkpoint` reads.
        target: whose states it reads.
        layers: the hidden states that it was trained on.
        held_out: greedy samples.
        depth: tokens of a chain.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        DataError: no sample has a token that the target wrote.
    """
    checkpoint = load_checkpoint(directory)
    model = Eagle3.from_checkpoint(checkpoint).eval()
    ids = torch.as_tensor(target_ids(checkpoint))
    source, total, counts = OnlineFeatures(target, layers), Acceptance(depth), []
    for sample in held_out:
        hits = _hits(model, target, source, sample, ids, depth)
        own = Acceptance(depth)
        for start, end in sample.written:
            own.add(hits, start, end)
        total.merge(own)
        if own.steps:
            counts.append((own.tokens, own.steps))
    if total.length is None:
        raise DataError("the held-out answers have no tokens, so acceptance is undefined; gather others")
    return Judgement(total.length, interval(counts), total.by_position)


def interval(counts: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of tokens over steps, from those of each sample."""
    drawn = np.random.default_rng(0).integers(len(counts), size=(_RESAMPLES, len(counts)))
    sums = np.array(counts)[drawn].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
    return float(low), float(high)


@torch.no_grad()
def _hits(
    model: Eagle3,
    target: FrozenTarget,
    source: OnlineFeatures,
    sample: Sample,
    ids: torch.Tensor,
    depth: int,
) -> torch.Tensor:
    """bool ``[depth, T]``: was the token after row t drafted right at this depth? (`speculators.training.trainee`)."""
    batch = collate([sample], source, everything=False)
    layer, length = model.midlayer, batch.tokens.shape[1]
    everywhere = torch.arange(length)[None]
    attention = UnrolledAttention(layer.self_attn, Roots(everywhere, everywhere))
    embedded = layer.input_layernorm(target.embedding[batch.tokens])
    hidden = model.fuse(batch.fused.flatten(2).float())
    table = torch.zeros(depth, length, dtype=torch.bool)
    for level in range(1, depth + 1):
        ahead = torch.roll(embedded, -level, dims=1)  # what wraps around lies behind every row that counts
        read = attention.read if level == 1 else attention.go_on
        hidden = hidden + read(torch.cat([ahead, layer.hidden_norm(hidden)], dim=-1))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        drafted = ids[model.lm_head(model.norm(hidden)).argmax(-1)[0]]
        if length > level + 1:
            # At row t the chain has drafted the token t + level + 1, which is what row t + level has to predict.
            table[level - 1, level:-1] = drafted[: length - level - 1] == batch.tokens[0, level + 1 :]
    return table
