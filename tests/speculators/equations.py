"""The published equations once more, in NumPy and float64, from names of the released layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import erf

Values = Any  # float64 arrays; NumPy types say little about formulas


def assert_agrees(found: Values, expected: Values) -> None:
    """float32 against float64: the rounding of a sum goes with its largest terms, not with what is left of them."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def sigmoid(x: Values) -> Values:
    return 0.5 * (1 + np.tanh(x / 2))


def silu(x: Values) -> Values:
    return x * sigmoid(x)


def gelu(x: Values) -> Values:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def rms(x: Values, epsilon: float) -> Values:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)


def mlp_speculator(
    config: dict[str, Any], weights: dict[str, Values], hidden: Values, tokens: Values
) -> Values:
    """Logits ``[n, V]`` for one hidden state ``[E]`` and the n tokens fed to the stages."""
    n, width = config["n_predict"], config["inner_dim"] or config["emb_dim"]
    state_weight = 0.5 ** (0.5 / n)
    embedding_weight = np.sqrt((1 - state_weight**2) * (width / 2))
    state = rms(hidden, 1e-6) / np.sqrt(2) if config["scale_input"] else hidden
    logits = []
    for i in range(n):
        part = {
            key: weights[f"speculator.{key}.{i}.weight"].astype(np.float64)
            for key in ("emb", "proj", "ln", "head")
        }
        mixed = part["proj"] @ state + embedding_weight / state_weight * part["emb"][tokens[i]]
        state = gelu(part["ln"] * rms(mixed, 1e-6) + weights[f"speculator.ln.{i}.bias"])
        logits.append(part["head"] @ state)
    return np.stack(logits)


def medusa(
    weights: dict[str, Values], heads: int, blocks: int, hidden: Values, lm_head: Values | None = None
) -> Values:
    """Logits ``[heads, V]`` for one hidden state ``[H]``."""
    logits = []
    for k in range(heads):
        x = hidden
        for j in range(blocks):
            x = x + silu(
                weights[f"{k}.{j}.linear.weight"].astype(np.float64) @ x + weights[f"{k}.{j}.linear.bias"]
            )
        logits.append(
            (weights[f"{k}.{blocks}.weight"] if lm_head is None else lm_head).astype(np.float64) @ x
        )
    return np.stack(logits)


def redrafter(config: dict[str, Any], weights: dict[str, Values], hidden: Values, embedded: Values) -> Values:
    """Logits ``[n, V]`` for one hidden state ``[H]`` and the embeddings ``[n, H]`` of the tokens fed."""
    state, logits = np.zeros_like(hidden), []
    for e in embedded:
        if config["rnn"]:
            state = silu(
                weights["rnn_w.weight"] @ e + weights["rnn_u.weight"] @ state + weights["rnn_u.bias"]
            )
        else:
            state = e + state
        x = np.concatenate([hidden, state])
        if "input_proj.weight" in weights:
            x = weights["input_proj.weight"] @ x + weights["input_proj.bias"]
        for i in range(config["num_draft_layers"]):
            x = x + silu(weights[f"lm_head.{i}.linear.weight"] @ x + weights[f"lm_head.{i}.linear.bias"])
        logits.append(weights[f"lm_head.{config['num_draft_layers']}.weight"] @ x)
    return np.stack(logits)


def rotary(x: Values, position: int, theta: float, factor: float = 1.0) -> Values:
    """One head's vector ``[D]``, columns j and j + D/2 turned by position * theta^(-2j/D)."""
    half, turned = len(x) // 2, np.empty_like(x)
    for j in range(half):
        angle = position / factor * theta ** (-2 * j / len(x))
        a, b = x[j], x[j + half]
        turned[j], turned[j + half] = (
            a * np.cos(angle) - b * np.sin(angle),
            a * np.sin(angle) + b * np.cos(angle),
        )
    return turned


def attention(
    config: dict[str, Any],
    weights: dict[str, Values],
    prefix: str,
    x: Values,
    positions: Values,
    visible: Values,
) -> Values:
    """Rows ``[T, columns]`` to ``[T, H]``; one row, head and key at a time."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    theta, factor = config.get("rope_theta", 10000.0), (config.get("rope_scaling") or {}).get("factor", 1.0)

    def project(name: str, count: int, turn: bool) -> Values:
        norm = weights.get(f"{prefix}.self_attn.{name[0]}_norm.weight")
        rows = x @ weights[f"{prefix}.self_attn.{name}.weight"].T.astype(np.float64)
        rows = rows + weights.get(f"{prefix}.self_attn.{name}.bias", 0.0)
        split = rows.reshape(len(x), count, width)
        if not turn:
            return split
        if norm is not None:
            split = rms(split, config["rms_norm_eps"]) * norm
        return np.stack(
            [[rotary(h, p, theta, factor) for h in row] for row, p in zip(split, positions, strict=True)]
        )

    q, k, v = (
        project("q_proj", heads, True),
        project("k_proj", groups, True),
        project("v_proj", groups, False),
    )
    out = np.zeros((len(x), heads, width))
    for t in range(len(x)):
        for h in range(heads):
            g = h * groups // heads
            seen = np.flatnonzero(visible[t])
            scores = np.array([q[t, h] @ k[s, g] for s in seen]) / np.sqrt(width)
            shares = np.exp(scores - scores.max())
            out[t, h] = (shares / shares.sum()) @ v[seen, g]
    bias = weights.get(f"{prefix}.self_attn.o_proj.bias", 0.0)
    return out.reshape(len(x), -1) @ weights[f"{prefix}.self_attn.o_proj.weight"].T + bias


def gated_mlp(weights: dict[str, Values], prefix: str, x: Values) -> Values:
    gate, up = x @ weights[f"{prefix}.mlp.gate_proj.weight"].T, x @ weights[f"{prefix}.mlp.up_proj.weight"].T
    return (silu(gate) * up) @ weights[f"{prefix}.mlp.down_proj.weight"].T


def eagle(
    config: dict[str, Any],
    weights: dict[str, Values],
    hidden: Values,
    embedded: Values,
    positions: Values,
    visible: Values,
) -> Values:
    """Rows ``[T, H]`` of hidden states and of next tokens' embeddings to ``[T, H]``."""
    x = np.concatenate([embedded, hidden], axis=-1) @ weights["fc.weight"].T + weights.get("fc.bias", 0.0)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"layers.{layer}"
        read = x
        if layer:
            read = rms(x, config["rms_norm_eps"]) * weights[f"{prefix}.input_layernorm.weight"]
        x = x + attention(config, weights, prefix, read, positions, visible)
        normed = rms(x, config["rms_norm_eps"]) * weights[f"{prefix}.post_attention_layernorm.weight"]
        x = x + gated_mlp(weights, prefix, normed)
    return x


def eagle3(
    config: dict[str, Any],
    weights: dict[str, Values],
    hidden: Values,
    embedded: Values,
    positions: Values,
    visible: Values,
) -> tuple[Values, Values]:
    """Rows ``[T, H]`` of fused or fed-back states to the layer's output ``[T, H]`` and logits ``[T, W]``."""
    epsilon = config["rms_norm_eps"]
    left = rms(embedded, epsilon) * weights["midlayer.input_layernorm.weight"]
    right = rms(hidden, epsilon) * weights["midlayer.hidden_norm.weight"]
    read = np.concatenate([left, right], axis=-1)
    x = (right if config.get("norm_before_residual") else hidden) + attention(
        config, weights, "midlayer", read, positions, visible
    )
    x = x + gated_mlp(
        weights, "midlayer", rms(x, epsilon) * weights["midlayer.post_attention_layernorm.weight"]
    )
    normed = rms(x, epsilon) * weights["norm.weight"]
    return (normed if config.get("norm_output") else x), normed @ weights["lm_head.weight"].T


def eagle3_fusion(config: dict[str, Any], weights: dict[str, Values], features: Values) -> Values:
    """Rows ``[T, F H]`` of three hidden states to ``[T, H]``."""
    epsilon = config["rms_norm_eps"]
    if config.get("norm_before_fc"):
        features = rms(features, epsilon) * weights["input_norm.weight"]
    if config.get("fc_norm"):
        parts = np.split(features, 3, axis=-1)
        parts = [rms(part, epsilon) * weights[f"fc_norm.{i}.weight"] for i, part in enumerate(parts)]
        features = np.concatenate(parts, axis=-1)
    return features @ weights["fc.weight"].T


def peagle(
    config: dict[str, Any],
    weights: dict[str, Values],
    features: Values,
    following: Values,
    mask_embedding: Values,
    size: int,
) -> Values:
    """Logits ``[size, W]`` of the tokens of a block below a text of T + 1 tokens.

    Takes the target's features ``[T, F H]`` of the first T of them, and the embeddings ``[T, H]`` of all but the first.
    """
    epsilon, masks = config["rms_norm_eps"], size - 1
    features = np.concatenate([features, np.repeat(weights["mask_hidden"].reshape(1, -1), masks, axis=0)])
    embedded = np.concatenate([following, np.repeat(mask_embedding[None], masks, axis=0)])
    positions, visible = np.arange(len(embedded)), np.tri(len(embedded), dtype=bool)
    hidden = eagle3_fusion(config, weights, features)
    first = {name.replace("layers.0.", "midlayer."): values for name, values in weights.items()}
    x, _ = eagle3({**config, "norm_output": False}, first, hidden, embedded, positions, visible)
    for i in range(1, config["num_hidden_layers"]):
        layer = f"layers.{i}"
        read = rms(x, epsilon) * weights[f"{layer}.input_layernorm.weight"]
        x = x + attention(config, weights, layer, read, positions, visible)
        read = rms(x, epsilon) * weights[f"{layer}.post_attention_layernorm.weight"]
        x = x + gated_mlp(weights, layer, read)
    return (rms(x, epsilon) * weights["norm.weight"] @ weights["lm_head.weight"].T)[-size:]
