"""EAGLE drafters on a TensorRT-LLM checkpoint compute what they computed, and come back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.converters.dispatch import convert_drafter, restore_drafter
from build.converters.eagle import TreeLimits
from build.converters.errors import ConversionError
from speculators.eagle.checkpoint import load_checkpoint
from tests.build.converters import engines, targets
from tests.speculators import equations, released
from tests.speculators.test_eagle import POSITIONS, VISIBLE, rows

TOKENS = np.array([3, 1, 40, 7, 7, 20])


@settings(max_examples=12, deadline=None)
@given(
    tp_size=st.sampled_from([1, 2, 4]),
    layers=st.integers(1, 2),
    bias=st.booleans(),
    embedding=st.booleans(),
    key_heads=st.sampled_from([1, 2]),
    vocabulary=st.integers(41, 48),
)
def test_the_engine_computes_the_drafters_states_and_gives_the_drafter_back(
    tp_size: int,
    layers: int,
    bias: bool,
    embedding: bool,
    key_heads: int,
    vocabulary: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("eagle")
    config, weights = released.eagle(
        layers, bias, embedding, vocab_size=vocabulary, num_key_value_heads=key_heads
    )
    for name, values in weights.items():
        rows_kept = {"embed": vocabulary, "k_pro": 4 * key_heads, "v_pro": 4 * key_heads}
        kind = "embed" if name.startswith("embed") else name.partition("self_attn.")[2][:5]
        weights[name] = values[: rows_kept.get(kind)]
    source = released.write(root / "drafter", config, weights)
    target = targets.engine_checkpoint(root / "target", tp_size, vocabulary=vocabulary)
    convert_drafter("eagle", source, target, root / "out", limits=TreeLimits(depth=2))

    shared = targets.matrices(vocabulary)
    table = weights.get("embed_tokens.weight", shared["model.embed_tokens.weight"])
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    expected = equations.eagle(config, wide, rows(1), table[TOKENS], POSITIONS, VISIBLE)
    written, ranks = engines.load(root / "out")
    for net in range(2):
        states, logits = engines.eagle(written, ranks, net, rows(1), TOKENS, POSITIONS, VISIBLE)
        np.testing.assert_allclose(states, expected, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(
            logits[:, :vocabulary], expected @ shared["lm_head.weight"].T, rtol=1e-5, atol=1e-6
        )
        assert not logits[:, vocabulary:].any()

    restore_drafter("eagle", root / "out", root / "again")
    again = load_checkpoint(root / "again")
    assert released.same(again.tensors, weights | {"embed_tokens.weight": table})
    assert again.config.rms_norm_eps == config["rms_norm_eps"]
    assert again.config.bias == bias


@pytest.mark.parametrize(
    ("one", "other"), [("mlp.fc.weight", "mlp.gate.weight"), ("mlp.proj.weight", "attention.dense.weight")]
)
def test_the_comparison_sees_a_tensor_under_a_wrong_name(one: str, other: str, tmp_path: Path) -> None:
    config, weights = released.eagle(intermediate_size=24)
    source = released.write(tmp_path / "drafter", config, weights)
    convert_drafter("eagle", source, targets.engine_checkpoint(tmp_path / "target"), tmp_path / "out")
    written, [rank] = engines.load(tmp_path / "out")
    left, right = (f"eagle_nets.0.drafter.layers.0.{name}" for name in (one, other))
    rank[left] = rank[right] if rank[left].shape == rank[right].shape else np.roll(rank[left], 1, axis=1)
    states, _ = engines.eagle(written, [rank], 0, rows(1), TOKENS, POSITIONS, VISIBLE)
    embedded = weights["embed_tokens.weight"][TOKENS]
    expected = equations.eagle(config, weights, rows(1), embedded, POSITIONS, VISIBLE)
    assert np.abs(states - expected).max() > 0.1


def test_the_config_has_the_keys_of_the_release(tmp_path: Path) -> None:
    source = released.write(tmp_path / "drafter", *released.eagle())
    target = targets.engine_checkpoint(tmp_path / "target", 2)
    done = convert_drafter("eagle", source, target, tmp_path / "out", limits=TreeLimits(31, 3, 5))
    old, new = (
        json.loads((directory / "config.json").read_text()) for directory in (target, tmp_path / "out")
    )
    net = new.pop("eagle_net_config")
    assert new == old | {
        "architecture": "EagleForCausalLM",
        "max_draft_len": 31,
        "num_eagle_layers": 3,
        "max_non_leaves_per_layer": 5,
    }
    keys = "architecture num_hidden_layers num_attention_heads num_key_value_heads hidden_size vocab_size norm_epsilon"
    assert [net[key] for key in keys.split()] == ["LlamaForCausalLM", 1, 4, 2, 16, 48, 1e-5]
    assert net["mapping"] == {"world_size": 2, "tp_size": 2, "pp_size": 1}
    assert "3 entries" in done.notes[1]


def test_the_source_layout_has_what_nvidias_loader_demands(tmp_path: Path) -> None:
    config, weights = released.eagle(bias=False, embedding=False)
    source = released.write(tmp_path / "drafter", config, weights)
    target = targets.huggingface(tmp_path / "target")
    convert_drafter("eagle", source, target, tmp_path / "out", layout="source")
    added = {
        "embed_tokens.weight": targets.matrices()["model.embed_tokens.weight"],
        "fc.bias": np.zeros(released.WIDTH, np.float32),
    }
    assert released.same(load_checkpoint(tmp_path / "out").tensors, weights | added)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = released.write(tmp_path / "drafter", *released.eagle())
    biased_config, biased = released.eagle(qkv_bias=True)
    for name, width in (("q_proj", 16), ("k_proj", 8), ("v_proj", 8)):
        biased |= released.drawn({f"layers.0.self_attn.{name}.bias": (width,)})
    qwen = released.write(tmp_path / "qwen", biased_config, biased)
    plain = targets.engine_checkpoint(tmp_path / "plain")
    llama3 = {"rotary_base": 10000.0, "rotary_scaling": {"rope_type": "llama3", "factor": 8.0}}
    linear = released.write(
        tmp_path / "linear", *released.eagle(rope_scaling={"rope_type": "linear", "factor": 2.0})
    )
    four = {"rotary_scaling": {"type": "linear", "factor": 4.0}}
    cases: list[tuple[Path, dict[str, Any], dict[str, Any], str]] = [
        (linear, four, {}, "rope scaling with factor 2.0, .* with 4.0"),
        (
            source,
            {"rotary_base": 5e5},
            {},
            "rope_theta 10000, .* rotary_base 500000; an engine has one rotary table",
        ),
        (source, llama3, {}, "rope scaling 'default', .* has 'llama3'"),
        (source, {"use_parallel_embedding": True}, {}, "without --use_parallel_embedding"),
        (
            source,
            {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
            {},
            "quantises the KV cache",
        ),
        (source, {"architecture": "Qwen2ForCausalLM"}, {}, "puts EAGLE on LlamaForCausalLM"),
        (source, {"pp_size": 2}, {}, "2 pipeline stages; EAGLE runs on one"),
        (source, {"tp_size": 8}, {}, "4 heads cannot be shared out over 8 ranks"),
        (
            source,
            {},
            {"limits": TreeLimits(max_draft_length=257)},
            "max_draft_length = 257 must be from 1 to 256",
        ),
        (source, {}, {"limits": TreeLimits(depth=0)}, "num_eagle_layers = 0"),
        (source, {}, {"limits": TreeLimits(max_non_leaves=0)}, "max_non_leaves_per_layer = 0"),
        (qwen, {}, {}, "query, key and value biases"),
    ]
    for number, (drafter, changes, choices, message) in enumerate(cases):
        target = targets.engine_checkpoint(tmp_path / f"target{number}", **changes)
        with pytest.raises(ConversionError, match=message):
            convert_drafter("eagle", drafter, target, tmp_path / "out", **choices)
        assert not (tmp_path / "out").exists(), message
    with pytest.raises(ConversionError, match="is a LlamaForCausalLM checkpoint, not EagleForCausalLM"):
        restore_drafter("eagle", plain, tmp_path / "out")
