"""What TensorRT-LLM 1.2.1 computes from a checkpoint's tensors, in NumPy: each rank its share, then gathered or summed.

Written from NVIDIA's module definitions (`models/{medusa,redrafter,eagle,llama}/`), not from the converters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.speculators.equations import rms, rotary, silu

Values = Any
Ranks = list[dict[str, Values]]


def load(directory: Path) -> tuple[dict[str, Any], Ranks]:
    """Config, and weights of every rank in float64."""
    config = json.loads((directory / "config.json").read_text())
    files = sorted(directory.glob("rank*.safetensors"), key=lambda path: int(path.stem[4:]))
    return config, [
        {name: values.astype(np.float64) for name, values in load_file(path).items()} for path in files
    ]


def column(ranks: Ranks, name: str, x: Values, bias: bool = False) -> Values:
    """ColumnLinear with gather_output: each rank computes some of the outputs."""
    parts = [rank[f"{name}.weight"] @ x + (rank[f"{name}.bias"] if bias else 0.0) for rank in ranks]
    return np.concatenate(parts)


def medusa(config: dict[str, Any], ranks: Ranks, hidden: Values) -> Values:
    """Logits ``[heads, padded V]``."""
    logits = []
    for h in range(config["num_medusa_heads"]):
        x = hidden
        for layer in range(config["num_medusa_layers"]):
            x = x + silu(column(ranks, f"medusa_heads.{h}.medusa_layers.{layer}.linear", x, bias=True))
        logits.append(column(ranks, f"medusa_heads.{h}.lm_head", x))
    return np.stack(logits)


def redrafter(config: dict[str, Any], ranks: Ranks, hidden: Values, embedded: Values) -> Values:
    """Logits ``[n, V]``."""
    state, logits = np.zeros_like(hidden), []
    for e in embedded:
        if config["redrafter_is_rnn"]:
            state = silu(column(ranks, "drafter.rnn_w", e) + column(ranks, "drafter.rnn_u", state, bias=True))
        else:
            state = e + state
        x = np.concatenate([hidden, state])
        if config["redrafter_exit_dim"] != 2 * config["redrafter_hidden_size"]:
            x = column(ranks, "drafter.input_proj", x, bias=True)
        for i in range(config["redrafter_num_layers"]):
            x = x + silu(column(ranks, f"drafter.layers.{i}.linear", x, bias=True))
        logits.append(column(ranks, "drafter.lm_head", x))
    return np.stack(logits)


def eagle(
    config: dict[str, Any],
    ranks: Ranks,
    net: int,
    hidden: Values,
    tokens: Values,
    positions: Values,
    visible: Values,
) -> tuple[Values, Values]:
    """Hidden states ``[T, H]`` and logits ``[T, padded V]`` of one net."""
    prefix, own = f"eagle_nets.{net}.drafter.", config["eagle_net_config"]
    table = ranks[0][f"{prefix}vocab_embedding.weight"]
    joined = np.concatenate([table[tokens], hidden], axis=-1)
    x = np.stack([column(ranks, f"{prefix}fc", row, bias=True) for row in joined])
    for i in range(own["num_hidden_layers"]):
        layer = f"{prefix}layers.{i}."
        read = x
        if i:
            read = rms(x, own["norm_epsilon"]) * ranks[0][f"{layer}input_layernorm.weight"]
        x = x + sum(_attention(own, rank, layer, read, positions, visible, len(ranks)) for rank in ranks)
        read = rms(x, own["norm_epsilon"]) * ranks[0][f"{layer}post_layernorm.weight"]
        x = x + sum(_mlp(rank, layer, read) for rank in ranks)
    return x, np.stack([column(ranks, f"eagle_nets.{net}.lm_head", row) for row in x])


def _mlp(rank: dict[str, Values], layer: str, x: Values) -> Values:
    """GatedMLP: the activation is on `fc`; `proj` is a RowLinear, its parts are summed."""
    inner = silu(x @ rank[f"{layer}mlp.fc.weight"].T) * (x @ rank[f"{layer}mlp.gate.weight"].T)
    return inner @ rank[f"{layer}mlp.proj.weight"].T


def _attention(
    own: dict[str, Any],
    rank: dict[str, Values],
    layer: str,
    x: Values,
    positions: Values,
    visible: Values,
    size: int,
) -> Values:
    """The rank's query heads over its key heads (at least one); `dense` is a RowLinear."""
    width = own["head_size"]
    heads, groups = own["num_attention_heads"] // size, max(own["num_key_value_heads"] // size, 1)
    qkv = (x @ rank[f"{layer}attention.qkv.weight"].T).reshape(len(x), heads + 2 * groups, width)
    turned = np.stack(
        [
            [rotary(h, p, own["rotary_base"]) for h in row[: heads + groups]]
            for row, p in zip(qkv, positions, strict=True)
        ]
    )
    q, k, v = turned[:, :heads], turned[:, heads:], qkv[:, heads + groups :]
    out = np.zeros((len(x), heads, width))
    for t in range(len(x)):
        seen = np.flatnonzero(visible[t])
        for h in range(heads):
            g = h * groups // heads
            scores = k[seen, g] @ q[t, h] / np.sqrt(width)
            shares = np.exp(scores - scores.max())
            out[t, h] = (shares / shares.sum()) @ v[seen, g]
    return out.reshape(len(x), -1) @ rank[f"{layer}attention.dense.weight"].T
