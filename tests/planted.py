"""Drafters of a tiny target that are often right: matrices are fitted to what it has written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speculators.eagle.model import Eagle
from speculators.eagle3.model import Eagle3
from speculators.medusa.model import MedusaHeads
from speculators.mlp_speculator.model import MlpSpeculator
from speculators.peagle.model import PEagle

WIDTH, VOCABULARY = 64, 265
HEADS, STAGES = 4, 3
PROMPT = 12
"""Tokens before what they are fitted to."""


@dataclass(frozen=True)
class Trace:
    """One greedy output: all tokens, and the target's hidden states at each, [T, layers, H]."""

    tokens: list[int]
    hidden: NDArray[np.float32]


def fit(inputs: NDArray[Any], outputs: NDArray[Any]) -> torch.Tensor:
    """The matrix [out, in] that maps inputs [n, in] to outputs [n, out] best."""
    ridge = 1e-3 * np.eye(inputs.shape[1])
    return torch.from_numpy(
        np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs).T.astype(np.float32)
    )


def _one_hot(tokens: Sequence[int]) -> NDArray[np.float64]:
    return 20 * np.eye(VOCABULARY)[list(tokens)]


def randomise(module: torch.nn.Module) -> None:
    """Weights under which every term matters."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = parameter.ndim == 1 and "bias" not in name
            parameter.normal_(0, 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            if norm:
                parameter.add_(1)


def plant_mlp(model: MlpSpeculator, traces: Sequence[Trace]) -> None:
    """Fit the heads to texts by teacher forcing."""
    inputs: list[list[NDArray[np.float64]]] = [[] for _ in range(STAGES)]
    wanted: list[list[int]] = [[] for _ in range(STAGES)]
    with torch.no_grad():
        for trace in traces:
            rows = range(PROMPT - 1, len(trace.tokens) - STAGES - 1)
            state = model.first_state(torch.from_numpy(trace.hidden[rows, -1]))
            for stage in range(STAGES):
                before = torch.tensor([trace.tokens[row + stage + 1] for row in rows])
                state, _ = model.step(stage, state, before)
                inputs[stage].append(state.numpy().astype(np.float64))
                wanted[stage] += [trace.tokens[row + stage + 2] for row in rows]
        for stage in range(STAGES):
            head: Any = model.head[stage]
            head.weight.copy_(fit(np.concatenate(inputs[stage]), _one_hot(wanted[stage])))


def plant_medusa(model: MedusaHeads, traces: Sequence[Trace]) -> None:
    """Fit the output matrices to texts."""
    with torch.no_grad():
        for head in range(HEADS):
            blocks: Any = list(model)[head]
            inputs, wanted = [], []
            for trace in traces:
                rows = range(PROMPT - 1, len(trace.tokens) - head - 2)
                values = blocks[:-1](torch.from_numpy(trace.hidden[rows, -1]))
                inputs.append(values.numpy().astype(np.float64))
                wanted += [trace.tokens[row + head + 2] for row in rows]
            blocks[-1].weight.copy_(fit(np.concatenate(inputs), _one_hot(wanted)))


def plant_eagle(model: Eagle, traces: Sequence[Trace], embedding: torch.Tensor) -> None:
    """Fit the last matrix so that the target's next hidden state comes out."""
    mlp: Any = model.layers[0].mlp
    inputs, wanted = [], []
    seen: list[torch.Tensor] = []
    hook = mlp.down_proj.register_forward_pre_hook(lambda module, values: seen.append(values[0]))
    with torch.no_grad():
        mlp.down_proj.weight.zero_()
        for trace in traces:
            before, after = torch.from_numpy(trace.hidden[:-1, -1]), trace.hidden[1:, -1]
            output, _ = model(before[None], embedding[trace.tokens[1:-1]][None], *_causal(len(before)))
            inputs.append(seen[-1][0].numpy().astype(np.float64))
            wanted.append(after - output[0].numpy())
        mlp.down_proj.weight.copy_(fit(np.concatenate(inputs), np.concatenate(wanted)))
    hook.remove()


def plant_eagle3(
    model: Eagle3, traces: Sequence[Trace], embedding: torch.Tensor, kept: NDArray[np.int64]
) -> None:
    """Fit the output matrix to texts."""
    inputs, wanted = [], []
    with torch.no_grad():
        for trace in traces:
            features = torch.from_numpy(trace.hidden[:-1, :-1].reshape(len(trace.hidden) - 1, -1))
            rows = len(features)
            output, _ = model(model.fuse(features)[None], embedding[trace.tokens[1:-1]][None], *_causal(rows))
            inputs.append(model.norm(output)[0, PROMPT:].numpy().astype(np.float64))
            wanted += trace.tokens[PROMPT + 2 : rows + 2]
        model.lm_head.weight.copy_(fit(np.concatenate(inputs), _one_hot(wanted)[:, kept]))


def plant_peagle(
    model: PEagle, traces: Sequence[Trace], embedding: torch.Tensor, kept: NDArray[np.int64], size: int
) -> None:
    """Fit the output matrix to texts, with a block behind every position of them."""
    inputs, wanted = [], []
    with torch.no_grad():
        for trace in traces:
            features = torch.from_numpy(trace.hidden[:-size, :-1].reshape(len(trace.hidden) - size, -1))
            rows = len(features)
            masks = (size - 1) * rows
            hidden = torch.cat([model.fuse(features), model.fuse(model.mask_hidden[0]).expand(masks, -1)])
            tokens = [*trace.tokens[1 : rows + 1], *[model.config.mask_token_id] * masks]
            output, _ = model(hidden[None], embedding[tokens][None], *_blocks(rows, size))
            for depth in range(size):
                part = model.norm(output)[0, depth * rows + PROMPT : (depth + 1) * rows]
                inputs.append(part.numpy().astype(np.float64))
                wanted += trace.tokens[PROMPT + 2 + depth : rows + 2 + depth]
        model.lm_head.weight.copy_(fit(np.concatenate(inputs), _one_hot(wanted)[:, kept]))


def _blocks(rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and who sees whom of a text and, depth after depth, of the masks of a block behind each of its rows."""
    anchor, depth = torch.arange(rows).repeat(size), torch.arange(size).repeat_interleave(rows)
    text = (depth[None] == 0) & (anchor[None] <= anchor[:, None])
    own = (anchor[None] == anchor[:, None]) & (depth[None] <= depth[:, None])
    return (anchor + depth)[None], (text | own)[None]


def _causal(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [1, T] and who sees whom [1, T, T]."""
    return torch.arange(rows)[None], torch.ones(rows, rows, dtype=torch.bool).tril()[None]
