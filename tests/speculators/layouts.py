"""The kit's checkpoints in layouts that others write."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

_OUTER = (
    "draft_vocab_size",
    "target_hidden_size",
    "norm_before_residual",
    "eagle_aux_hidden_state_layer_ids",
)
_LAYER = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "hidden_act",
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
)


def eagle3_of_the_speculators_library(source: Path, directory: Path, verifier: Path) -> Path:
    """An EAGLE-3 drafter as the library writes it (`Eagle3SpeculatorConfig`, `Eagle3Speculator`, 2026-08)."""
    flat = json.loads((source / "config.json").read_text())
    content = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": str(verifier), "architectures": ["LlamaForCausalLM"]},
        },
        "norm_before_residual": False,
        "embed_requires_grad": False,
        **{key: flat[key] for key in _OUTER if flat.get(key) is not None},
        "transformer_layer_config": {
            "model_type": "llama",
            "attention_bias": False,
            "mlp_bias": False,
            **{key: flat[key] for key in _LAYER if flat.get(key) is not None},
        },
    }
    tensors = load_file(source / "model.safetensors")
    renamed = {name.replace("midlayer.", "layers.0."): values for name, values in tensors.items()}
    directory.mkdir(parents=True)
    save_file(renamed, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(content))
    return directory
