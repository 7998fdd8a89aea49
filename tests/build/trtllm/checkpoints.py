"""Small checkpoints on disk: config, weights of the right shapes, tokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.build.converters import targets
from tests.speculators import released

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
}


def checkpoint(directory: Path, tokens: dict[str, int] | None = None, **changes: Any) -> Path:
    """A model: a matrix per layer, an embedding and an output matrix in fp32, and a tokenizer of these tokens."""
    directory.mkdir(parents=True)
    config = CONFIG | changes
    (directory / "config.json").write_text(json.dumps(config))
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    weights = {"model.embed_tokens.weight": np.zeros((vocabulary, hidden), np.float32)}
    weights["lm_head.weight"] = np.zeros((vocabulary, hidden), np.float32)
    for layer in range(config["num_hidden_layers"]):
        weights[f"model.layers.{layer}.weight"] = np.zeros((100, hidden), np.float32)
    save_file(weights, directory / "model.safetensors")
    write_tokenizer(
        directory, {f"t{index}": index for index in range(vocabulary)} if tokens is None else tokens
    )
    return directory


def eagle3_models(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """A target and an EAGLE-3 drafter of its width and vocabulary, where the example looks for them."""
    drafter = folder / "llama3-8b-eagle3"
    return targets.huggingface(folder / "llama3-8b"), released.write(drafter, *released.eagle3(**changes))


def write_tokenizer(directory: Path, tokens: dict[str, int]) -> None:
    """A `tokenizer.json` whose last token is an added one."""
    *plain, last = tokens.items()
    content = {"model": {"vocab": dict(plain)}, "added_tokens": [{"content": last[0], "id": last[1]}]}
    (directory / "tokenizer.json").write_text(json.dumps(content))
