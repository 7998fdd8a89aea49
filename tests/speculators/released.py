"""Tiny random drafters in the layouts that were released; names are written out here, not taken from the kit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Weights = dict[str, NDArray[Any]]

VOCABULARY, WIDTH = 48, 16


def drawn(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Normal weights of a size at which every term of the equations matters."""
    random = np.random.default_rng(seed)
    return {name: (random.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in shapes.items()}


def mlp_speculator(
    stages: int = 3, width: int = 24, tied: bool = False, scaled: bool = False
) -> tuple[Any, Weights]:
    config = {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "vocab_size": VOCABULARY,
        "emb_dim": WIDTH,
        "inner_dim": width,
        "n_predict": stages,
        "top_k_tokens_per_head": [3] * stages,
        "n_candidates": 4,
        "tie_weights": tied,
        "scale_input": scaled,
        "torch_dtype": "float32",
        "transformers_version": "4.38.2",
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(stages):
        shapes[f"speculator.emb.{i}.weight"] = (VOCABULARY, width)
        shapes[f"speculator.proj.{i}.weight"] = (width, WIDTH if i == 0 else width)
        shapes[f"speculator.ln.{i}.weight"] = (width,)
        shapes[f"speculator.ln.{i}.bias"] = (width,)
        shapes[f"speculator.head.{i}.weight"] = (VOCABULARY, width)
    weights = drawn(shapes)
    if tied:
        for name in list(weights):
            _, part, stage, rest = name.split(".")
            weights[name] = weights[f"speculator.{part}.{min(int(stage), 1) if part == 'proj' else 0}.{rest}"]
    return config, weights


def medusa(heads: int = 3, blocks: int = 1, outputs: bool = True) -> tuple[Any, Weights]:
    config = {
        "medusa_num_heads": heads,
        "medusa_num_layers": blocks,
        "base_model_name_or_path": "tiny/target",
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for block in range(blocks):
            shapes[f"{head}.{block}.linear.weight"] = (WIDTH, WIDTH)
            shapes[f"{head}.{block}.linear.bias"] = (WIDTH,)
        if outputs:
            shapes[f"{head}.{blocks}.weight"] = (VOCABULARY, WIDTH)
    return config, drawn(shapes)


def _llama(**changes: Any) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "max_position_embeddings": 128,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
    }
    return config | changes


def _layer(prefix: str, columns: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.self_attn.q_proj.weight": (WIDTH, columns),
        f"{prefix}.self_attn.k_proj.weight": (WIDTH // 2, columns),
        f"{prefix}.self_attn.v_proj.weight": (WIDTH // 2, columns),
        f"{prefix}.self_attn.o_proj.weight": (WIDTH, WIDTH),
        f"{prefix}.mlp.gate_proj.weight": (24, WIDTH),
        f"{prefix}.mlp.up_proj.weight": (24, WIDTH),
        f"{prefix}.mlp.down_proj.weight": (WIDTH, 24),
        f"{prefix}.post_attention_layernorm.weight": (WIDTH,),
    }


def eagle(layers: int = 1, bias: bool = True, embedding: bool = True, **changes: Any) -> tuple[Any, Weights]:
    config = _llama(num_hidden_layers=layers, **changes) | ({} if bias else {"bias": False})
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (WIDTH, 2 * WIDTH)}
    if bias:
        shapes["fc.bias"] = (WIDTH,)
    if embedding:
        shapes["embed_tokens.weight"] = (VOCABULARY, WIDTH)
    for layer in range(layers):
        shapes |= _layer(f"layers.{layer}", WIDTH)
        if layer:
            shapes[f"layers.{layer}.input_layernorm.weight"] = (WIDTH,)
    return config, drawn(shapes)


def eagle3(draft_vocabulary: int | None = 20, layer: str = "midlayer", **changes: Any) -> tuple[Any, Weights]:
    config = _llama(**changes)
    if draft_vocabulary is not None:
        config["draft_vocab_size"] = draft_vocabulary
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (WIDTH, 3 * WIDTH)} | _layer(layer, 2 * WIDTH)
    shapes[f"{layer}.input_layernorm.weight"] = (WIDTH,)
    shapes[f"{layer}.hidden_norm.weight"] = (WIDTH,)
    shapes["norm.weight"] = (WIDTH,)
    shapes["lm_head.weight"] = (draft_vocabulary or VOCABULARY, WIDTH)
    if changes.get("norm_before_fc"):
        shapes["input_norm.weight"] = (3 * WIDTH,)
    if changes.get("fc_norm"):
        shapes |= {f"fc_norm.{feature}.weight": (WIDTH,) for feature in range(3)}
    if changes.get("model_type") == "qwen3":
        shapes |= {f"{layer}.self_attn.{kind}_norm.weight": (WIDTH // 4,) for kind in "qk"}
    weights = drawn(shapes)
    if draft_vocabulary is not None:
        kept = np.sort(np.random.default_rng(5).permutation(VOCABULARY)[:draft_vocabulary])
        weights["d2t"] = kept - np.arange(draft_vocabulary)
        weights["t2d"] = np.isin(np.arange(VOCABULARY), kept)
    return config, weights


def peagle(
    layers: int = 2, draft_vocabulary: int | None = 20, mask: str = "ptd_token_id", **changes: Any
) -> tuple[Any, Weights]:
    """As NeMo AutoModel's are: EAGLE-3's first layer, plain ones after it, and what stands for features at a mask."""
    config, weights = eagle3(draft_vocabulary, "layers.0", num_hidden_layers=layers, **changes)
    shapes: dict[str, tuple[int, ...]] = {"mask_hidden": (1, 1, 3 * WIDTH)}
    for layer in range(1, layers):
        shapes |= _layer(f"layers.{layer}", WIDTH)
        shapes[f"layers.{layer}.input_layernorm.weight"] = (WIDTH,)
        if changes.get("model_type") == "qwen3":
            shapes |= {f"layers.{layer}.self_attn.{kind}_norm.weight": (WIDTH // 4,) for kind in "qk"}
    if changes.get("attention_bias"):
        widths = {"q": WIDTH, "k": WIDTH // 2, "v": WIDTH // 2, "o": WIDTH}
        shapes |= {
            f"layers.{layer}.self_attn.{kind}_proj.bias": (width,)
            for layer in range(layers)
            for kind, width in widths.items()
        }
    return config | {mask: 45}, weights | drawn(shapes, seed=1)


def redrafter(blocks: int = 2, exit_width: int = 2 * WIDTH, rnn: bool = True) -> tuple[Any, Weights]:
    config = {
        "architectures": ["Drafter"],
        "model_type": "recurrent_drafting_drafter",
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "exit_dim": exit_width,
        "num_draft_layers": blocks,
        "num_lookback_tokens": 0,
        "rnn": rnn,
    }
    shapes: dict[str, tuple[int, ...]] = {}
    if exit_width != 2 * WIDTH:
        shapes |= {"input_proj.weight": (exit_width, 2 * WIDTH), "input_proj.bias": (exit_width,)}
    for block in range(blocks):
        shapes[f"lm_head.{block}.linear.weight"] = (exit_width, exit_width)
        shapes[f"lm_head.{block}.linear.bias"] = (exit_width,)
    shapes[f"lm_head.{blocks}.weight"] = (VOCABULARY, exit_width)
    if rnn:
        shapes |= {"rnn_u.weight": (WIDTH, WIDTH), "rnn_u.bias": (WIDTH,), "rnn_w.weight": (WIDTH, WIDTH)}
    return config, drawn(shapes)


def write(
    directory: Path, config: Mapping[str, Any], weights: Weights, file: str = "model.safetensors"
) -> Path:
    """A checkpoint directory; `.pt` and `.bin` files are pickles, which needs PyTorch."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(weights, directory / file)
    else:
        import torch

        torch.save({name: torch.from_numpy(values) for name, values in weights.items()}, directory / file)
    return directory


def same(left: Mapping[str, NDArray[Any]], right: Mapping[str, NDArray[Any]]) -> bool:
    """Equal names, types and bits."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and left[name].tobytes() == right[name].tobytes()
        for name in left
    )
