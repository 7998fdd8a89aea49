"""EAGLE-1 and EAGLE-3: the released layouts in and out, and the published equations, with cache and tree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speculators.eagle.checkpoint import load_checkpoint, save_checkpoint
from speculators.formats.errors import CheckpointError
from tests.speculators import equations, released

# A prompt of three rows, then a tree: 3 and 4 are siblings, 5 is a child of 3.
POSITIONS = np.array([0, 1, 2, 3, 3, 4])
VISIBLE = np.array([[c <= r for c in range(6)] for r in range(6)])
VISIBLE[4, 3] = VISIBLE[5, 4] = False


def rows(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, released.WIDTH)).astype(np.float32)


def in_two_passes(model: Any, hidden: np.ndarray, embedded: np.ndarray) -> np.ndarray:
    """The prompt first, then the tree over its cache."""
    import torch

    outputs, past = [], None
    for part in (slice(0, 3), slice(3, 6)):
        given = (torch.from_numpy(values[part][None]) for values in (hidden, embedded, POSITIONS))
        output, past = model(*given, torch.from_numpy(VISIBLE[part, : part.stop][None]), past)
        outputs.append(output[0])
    return torch.cat(outputs).detach().numpy()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("embedding", [True, False])
def test_the_released_layout_comes_back_bit_for_bit(
    layers: int, bias: bool, embedding: bool, tmp_path: Path
) -> None:
    config, weights = released.eagle(layers, bias, embedding)
    checkpoint = load_checkpoint(released.write(tmp_path / "in", config, weights))
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    assert released.same(again.tensors, weights)
    assert again.config == checkpoint.config.stored_as("float32")


@pytest.mark.torch
def test_pickles_with_old_rotary_tables_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config, weights = released.eagle()
    old = weights | {"layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    checkpoint = load_checkpoint(released.write(tmp_path, config, old, "pytorch_model.bin"))
    assert released.same(checkpoint.tensors, weights)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    config, weights = released.eagle()
    cases: list[tuple[dict, dict, str]] = [
        ({"bias": False}, {}, r"unexpected fc\.bias"),
        ({"num_hidden_layers": 2}, {}, r"missing layers\.1\.input_layernorm\.weight"),
        (
            {},
            {"layers.0.input_layernorm.weight": rows(0)[0]},
            r"unexpected layers\.0\.input_layernorm\.weight",
        ),
        ({"vocab_size": 64}, {}, r"embed_tokens\.weight has shape \[48, 16\]; config\.json says \[64, 16\]"),
        (
            {"num_key_value_heads": 3},
            {},
            "num_attention_heads = 4 is not divisible by num_key_value_heads = 3",
        ),
        ({"num_attention_heads": 6, "num_key_value_heads": 6}, {}, "head_dim must be given"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, "type 'dynamic'; it must be one of"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            {},
            "llama3 needs low_freq_factor above 0",
        ),
        ({"hidden_act": "gelu"}, {}, "hidden_act = 'gelu'"),
    ]
    for number, (changes, more, message) in enumerate(cases):
        directory = released.write(tmp_path / str(number), config | changes, weights | more)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(directory)


def test_newer_rope_parameters_are_understood_and_written_in_the_older_spelling(tmp_path: Path) -> None:
    config, weights = released.eagle(
        rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    )
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights))
    assert (checkpoint.config.rope_theta, checkpoint.config.rope_type) == (5e5, "linear")
    save_checkpoint(checkpoint, tmp_path)
    content = load_checkpoint(tmp_path).config.content()
    assert content["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert "rope_parameters" not in content


@pytest.mark.torch
@pytest.mark.parametrize(
    ("layers", "bias", "changes"),
    [
        (1, True, {}),
        (2, False, {"rope_theta": 500.0}),
        (1, True, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ],
)
def test_eagle_is_that_of_the_published_equations(
    layers: int, bias: bool, changes: dict, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    from speculators.eagle.model import Eagle

    config, weights = released.eagle(layers, bias, **changes)
    model = Eagle.from_checkpoint(load_checkpoint(released.write(tmp_path, config, weights)))
    hidden, embedded = rows(4), rows(5)
    expected = equations.eagle(config, weights, hidden, embedded, POSITIONS, VISIBLE)
    equations.assert_agrees(in_two_passes(model, hidden, embedded), expected)
    own = {name: values for name, values in weights.items() if name != "embed_tokens.weight"}
    assert released.same(model.to_checkpoint().tensors, own)
    assert all(parameter.isnan().all() for parameter in Eagle(model.config).parameters())


@pytest.mark.torch
def test_query_biases_of_qwen2_drafters_are_used(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from speculators.eagle.model import Eagle

    config, weights = released.eagle(qkv_bias=True)
    for name, width in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        weights |= released.drawn({f"layers.0.self_attn.{name}.bias": (width,)}, seed=width)
    model = Eagle.from_checkpoint(load_checkpoint(released.write(tmp_path, config, weights)))
    expected = equations.eagle(config, weights, rows(4), rows(5), POSITIONS, VISIBLE)
    equations.assert_agrees(in_two_passes(model, rows(4), rows(5)), expected)


@pytest.mark.torch
@pytest.mark.parametrize("factor", [2.0, 8.0])
def test_llama3_rotary_scaling_is_that_of_transformers(factor: float, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from speculators.eagle.config import EagleConfig
    from speculators.eagle.layers import inverse_frequencies

    scaling: dict[str, Any] = {
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    scaling |= {"rope_type": "llama3", "factor": factor}
    content, _ = released.eagle(rope_scaling=scaling, rope_theta=5e5, head_dim=64)
    theirs = transformers.LlamaConfig(
        head_dim=64, max_position_embeddings=128, rope_parameters={**scaling, "rope_theta": 5e5}
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, torch.device("cpu"))
    ours = inverse_frequencies(EagleConfig.parse(content, "config"))
    torch.testing.assert_close(ours, expected)
    plain = inverse_frequencies(EagleConfig.parse(content | {"rope_scaling": None}, "config"))
    assert not torch.allclose(ours, plain)
