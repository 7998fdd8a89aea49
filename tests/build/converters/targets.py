"""Tiny targets: TensorRT-LLM checkpoints as NVIDIA's convert_checkpoint.py leaves them, and Hugging Face models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.speculators.released import VOCABULARY, WIDTH

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def matrices(vocabulary: int = VOCABULARY, seed: int = 20) -> dict[str, NDArray[Any]]:
    """Output matrix and token embedding, in values that every weight type holds exactly."""
    random = np.random.default_rng(seed)
    names = ("lm_head.weight", "model.embed_tokens.weight")
    return {name: (random.integers(-8, 9, (vocabulary, WIDTH)) / 8).astype(np.float32) for name in names}


def engine_checkpoint(
    directory: Path,
    tp_size: int = 1,
    pp_size: int = 1,
    dtype: str = "float32",
    vocabulary: int = VOCABULARY,
    **changes: Any,
) -> Path:
    """A LlamaForCausalLM checkpoint; the output matrix is padded with zero rows, the embedding is whole."""
    directory.mkdir(parents=True)
    config: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 24,
        "norm_epsilon": 1e-5,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 128,
        "rotary_base": 10000.0,
        "rotary_scaling": None,
        "mapping": {"world_size": tp_size * pp_size, "tp_size": tp_size, "pp_size": pp_size},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "use_parallel_embedding": False,
    }
    (directory / "config.json").write_text(json.dumps(config | changes))
    weights = {name: values.astype(DTYPES[dtype]) for name, values in matrices(vocabulary).items()}
    padded = -(-vocabulary // tp_size) * tp_size
    output = np.zeros((padded, WIDTH), DTYPES[dtype])
    output[:vocabulary] = weights["lm_head.weight"]
    for rank in range(tp_size * pp_size):
        tensors: dict[str, NDArray[Any]] = {
            "transformer.layers.0.mlp.fc.weight": np.arange(40, dtype=np.int8).reshape(8, 5) + rank,
            "transformer.layers.0.mlp.fc.per_channel_scale": np.ones(3, np.float32),
        }
        if rank < tp_size:
            tensors["transformer.vocab_embedding.weight"] = weights["model.embed_tokens.weight"]
        if rank >= tp_size * (pp_size - 1):
            tensors["lm_head.weight"] = np.ascontiguousarray(np.split(output, tp_size)[rank % tp_size])
        save_file(tensors, directory / f"rank{rank}.safetensors")
    return directory


def huggingface(directory: Path, vocabulary: int = VOCABULARY, tied: bool = False, **changes: Any) -> Path:
    """A Llama model's config, its two matrices, and a tokenizer with four added tokens."""
    directory.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    (directory / "config.json").write_text(json.dumps(config | changes))
    weights = matrices(vocabulary)
    if tied:
        del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors")
    plain = {f"token{i}": i for i in range(vocabulary - 4)}
    added = [{"id": vocabulary - 4 + i, "content": f"<|special{i}|>", "special": True} for i in range(4)]
    (directory / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": plain}, "added_tokens": added})
    )
    return directory


def files(directory: Path) -> dict[str, bytes]:
    """Every file of a directory, to see that nothing was touched."""
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}
