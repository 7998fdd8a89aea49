"""The reference forward pass: every supported family in plain NumPy, one token sequence, no cache.

Nothing here is fast or clever; it is written to be compared with the definition in
`build/targets/architecture.py` line by line, and other engines are compared with it.

Example::

    weights = load_weights(Path("models/smollm2-135m"))
    logits = forward(weights.architecture, weights, [504, 3575, 282, 4649, 314])     # [5, 49152]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from build.targets.architecture import Architecture
from build.targets.rope import Rope

Array = NDArray[np.floating[Any]]


def forward(
    architecture: Architecture,
    weights: Mapping[str, NDArray[Any]],
    tokens: Sequence[int],
    *,
    allowed: NDArray[np.bool_] | None = None,
    positions: Sequence[int] | None = None,
    dtype: type[np.floating[Any]] = np.float64,
) -> Array:
    """Logits [T, V] after each of the T tokens.

    Args:
        architecture: what to compute.
        weights: tensors by Hugging Face name, as `load_weights` gives them.
        tokens: T token ids.
        allowed: [T, T], whether the token of a row attends to that of a column; causal if None. With
            `positions`, this makes a token tree. Sliding windows narrow it further.
        positions: position of each token; 0 .. T - 1 if None.
        dtype: the type everything is computed in.
    """
    hidden = hidden_states(architecture, weights, tokens, allowed=allowed, positions=positions, dtype=dtype)[
        -1
    ]
    tied = architecture.tie_word_embeddings
    head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"].astype(dtype)
    logits: Array = hidden @ head.T / architecture.logits_divisor
    return logits


def hidden_states(
    architecture: Architecture,
    weights: Mapping[str, NDArray[Any]],
    tokens: Sequence[int],
    *,
    allowed: NDArray[np.bool_] | None = None,
    positions: Sequence[int] | None = None,
    dtype: type[np.floating[Any]] = np.float64,
) -> list[Array]:
    """What goes into each layer, and last what comes out of the final norm, [T, H] each; as `forward`."""
    place = np.arange(len(tokens)) if positions is None else np.asarray(positions)
    sees = np.tri(len(tokens), dtype=bool) if allowed is None else allowed
    embedding = weights["model.embed_tokens.weight"].astype(dtype)
    hidden = embedding[list(tokens)] * architecture.embedding_multiplier
    states = []
    for layer in range(architecture.num_layers):
        states.append(hidden)
        local = _LayerWeights(weights, f"model.layers.{layer}.", dtype)
        normed = _norm(architecture, local, hidden, architecture.norms.before_attention)
        mixed = _attention(
            architecture, local, normed, place, _visible(architecture, layer, sees, place), layer
        )
        mixed = _norm(architecture, local, mixed, architecture.norms.after_attention)
        hidden = hidden + mixed * architecture.residual_multiplier
        normed = _norm(architecture, local, hidden, architecture.norms.before_mlp)
        mixed = _norm(architecture, local, _mlp(architecture, local, normed), architecture.norms.after_mlp)
        hidden = hidden + mixed * architecture.residual_multiplier
    whole = _LayerWeights(weights, "model.", dtype)
    states.append(_norm(architecture, whole, hidden, "norm"))
    return states


class _LayerWeights:
    """The weights of one layer, in the type of the computation."""

    def __init__(
        self, weights: Mapping[str, NDArray[Any]], prefix: str, dtype: type[np.floating[Any]]
    ) -> None:
        self._weights, self._prefix, self._dtype = weights, prefix, dtype

    def __getitem__(self, name: str) -> Array:
        return self._weights[self._prefix + name].astype(self._dtype)

    def linear(self, name: str, inputs: Array) -> Array:
        """inputs [T, in] -> [T, out], with the bias where the checkpoint has one."""
        outputs = inputs @ self[f"{name}.weight"].T
        return outputs + self[f"{name}.bias"] if f"{self._prefix}{name}.bias" in self._weights else outputs


def _norm(architecture: Architecture, local: _LayerWeights, values: Array, name: str | None) -> Array:
    """Normalise the last axis to root mean square 1, then scale by the weight of that name; as it is without a name."""
    if name is None:
        return values
    square = np.mean(values**2, axis=-1, keepdims=True)
    normalised: Array = values / np.sqrt(square + architecture.rms_norm_eps)
    return normalised * (local[f"{name}.weight"] + architecture.norm_offset)


def _visible(
    architecture: Architecture, layer: int, sees: NDArray[np.bool_], place: NDArray[np.int64]
) -> NDArray[np.bool_]:
    if architecture.sliding_window is None or layer not in architecture.sliding_layers:
        return sees
    return sees & (place[None, :] > place[:, None] - architecture.sliding_window)


def _attention(
    architecture: Architecture,
    local: _LayerWeights,
    normed: Array,
    place: NDArray[np.int64],
    visible: NDArray[np.bool_],
    layer: int,
) -> Array:
    shape = (len(normed), -1, architecture.head_dim)
    query = local.linear("self_attn.q_proj", normed).reshape(shape)
    key = local.linear("self_attn.k_proj", normed).reshape(shape)
    value = local.linear("self_attn.v_proj", normed).reshape(shape)
    if architecture.qk_norm:
        query = _norm(architecture, local, query, "self_attn.q_norm")
        key = _norm(architecture, local, key, "self_attn.k_norm")
    rope = architecture.rope_of(layer)
    if rope is not None:
        query, key = (_rotate(rope, vectors, place) for vectors in (query, key))
    groups = architecture.num_heads // architecture.num_kv_heads
    key, value = np.repeat(key, groups, axis=1), np.repeat(value, groups, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key) * architecture.softmax_scale
    scores = np.where(visible, scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(len(normed), -1)
    return local.linear("self_attn.o_proj", mixed)


def _rotate(rope: Rope, vectors: Array, place: NDArray[np.int64]) -> Array:
    """Turn the pairs (i, i + head_dim / 2) of vectors [T, heads, head_dim] by position * frequency_i."""
    angles = place[:, None, None] * rope.inverse_frequencies(vectors.shape[-1])
    cos = (np.cos(angles) * rope.attention_scaling).astype(vectors.dtype)
    sin = (np.sin(angles) * rope.attention_scaling).astype(vectors.dtype)
    first, second = np.split(vectors, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _mlp(architecture: Architecture, local: _LayerWeights, normed: Array) -> Array:
    gate = local.linear("mlp.gate_proj", normed)
    if architecture.activation == "silu":
        active = gate / (1.0 + np.exp(-gate))
    else:
        active = 0.5 * gate * (1.0 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    return local.linear("mlp.down_proj", active * local.linear("mlp.up_proj", normed))
