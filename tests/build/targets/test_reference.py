"""Our reading of every family gives the logits of Transformers' own implementation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from build.targets.prepare import prepare_target
from build.targets.weights import load_weights
from tests.build.targets.tiny_models import (
    FAMILIES,
    GgufBuilder,
    random_weights,
    tiny_config,
    write_tokenizer,
)
from tests.reference_model import forward

pytestmark = pytest.mark.torch

TOKENS = [1, 70, 5, 200, 33, 33, 90, 12, 150, 7, 64, 2, 18, 255, 101, 40, 41, 42, 43, 44]
TOLERANCE = 1e-4

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in FAMILIES},
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, own head size": ("llama", {"head_dim": 32}),
    "llama 3.1 rope": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "linear rope": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "yarn rope": (
        "qwen2",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
    ),
    "yarn rope, all settings": (
        "llama",
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 8.0,
                "beta_slow": 0.5,
                "mscale": 0.7,
                "mscale_all_dim": 0.9,
                "truncate": False,
            }
        },
    ),
    "mistral with window": ("mistral", {"sliding_window": 6}),
    "qwen2 with window": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3 with biases": ("qwen3", {"attention_bias": True}),
    "granite with biases": ("granite", {"attention_bias": True, "mlp_bias": True}),
    "smollm3 by interval": ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 2}),
    "smollm3 with window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 5},
    ),
    "gemma3 by list, with biases and a scalar of its own": (
        "gemma3_text",
        {
            "attention_bias": True,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3, ropes in the new spelling": (
        "gemma3_text",
        {
            "rope_scaling": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
            },
        },
    ),
    "gemma3, window beyond the context": ("gemma3_text", {"sliding_window": 256}),
    "gemma3, unscaled, untied": ("gemma3_text", {"rope_scaling": None, "tie_word_embeddings": False}),
}


def _transformers_model(directory: Path, config: dict[str, Any]) -> Any:
    """A random model of Transformers, saved the way Transformers saves."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    settings = {key: value for key, value in config.items() if key != "model_type"}
    described = transformers.AutoConfig.for_model(config["model_type"], **settings)
    model = transformers.AutoModelForCausalLM.from_config(described, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = torch.randn_like(parameter)
            parameter.copy_(1.0 + 0.3 * spread if "norm" in name else spread * 0.15)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def _logits(model: Any) -> Any:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[variant]
    model = _transformers_model(tmp_path / "source", tiny_config(family, **changes))
    weights = load_weights(tmp_path / "source")
    ours, theirs = forward(weights.architecture, weights, TOKENS), _logits(model)
    assert np.abs(theirs).max() > 1.0
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_was_made_from_gguf(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = tiny_config(family)
    builder = GgufBuilder(config, {})
    weights = random_weights(builder.architecture)
    prepare_target(str(GgufBuilder(config, weights).write(tmp_path / "tiny.gguf")), tmp_path / "target")
    model = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "target", attn_implementation="eager")
        .float()
        .eval()
    )
    np.testing.assert_allclose(forward(builder.architecture, weights, TOKENS), _logits(model), atol=TOLERANCE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "target")
    assert tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template([{"role": "user", "content": "the é 12"}], tokenize=False)
    assert text == "<|im_start|>the é 12<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_old_and_new_spelling_of_transformers_are_one(tmp_path: Path) -> None:
    _transformers_model(tmp_path / "new", tiny_config("llama", rope_theta=5000.0))
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    old.update(rope_theta=5000.0, torch_dtype="float32")
    expected = load_weights(tmp_path / "new").architecture
    (tmp_path / "new" / "config.json").write_text(json.dumps(old))
    assert load_weights(tmp_path / "new").architecture == expected
    assert expected.rope.theta == 5000.0
