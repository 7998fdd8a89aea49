"""GGUF files give the weights and configuration that went into them, or a refusal that names the reason."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.gguf_file import GgufFile
from build.targets.gguf_model import huggingface_config, tensor_plans
from build.targets.rope import Rope, inverse_frequencies
from tests.build.targets.tiny_models import FAMILIES, GgufBuilder, random_weights, tiny_config, tiny_gguf


def _builder(family: str = "llama", **changes: Any) -> GgufBuilder:
    config = tiny_config(family, **changes)
    return GgufBuilder(config, random_weights(Architecture.from_config(config)))


def _read(path: Path) -> tuple[Architecture, dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """(architecture, tensors, storage types) of a file."""
    file = GgufFile(path)
    architecture = Architecture.from_config(huggingface_config(file))
    plans = tensor_plans(file, architecture)
    return (
        architecture,
        {plan.name: plan.produce() for plan in plans},
        {plan.name: plan.kind for plan in plans},
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_architecture_survive(family: str, tmp_path: Path) -> None:
    path, weights = tiny_gguf(tmp_path / "tiny.gguf", family)
    architecture, tensors, kinds = _read(path)
    expected = Architecture.from_config(tiny_config("llama" if family == "mistral" else family))
    same: tuple[str, ...] = (
        "head_dim",
        "qkv_bias",
        "qk_norm",
        "no_rope_layers",
        "tie_word_embeddings",
        "rms_norm_eps",
    )
    same += ("softmax_scale", "logits_divisor", "embedding_multiplier", "residual_multiplier", "rope")
    for field in same:
        assert getattr(architecture, field) == getattr(expected, field), field
    assert set(tensors) == set(weights)
    for name, values in weights.items():
        np.testing.assert_array_equal(tensors[name], values)
    assert set(kinds.values()) == {"F32"}


def test_biases_of_llama_are_found_and_restored(tmp_path: Path) -> None:
    path, weights = tiny_gguf(tmp_path / "tiny.gguf", attention_bias=True, mlp_bias=True)
    architecture, tensors, _ = _read(path)
    assert architecture.qkv_bias
    assert architecture.o_bias
    assert architecture.mlp_bias
    np.testing.assert_array_equal(
        tensors["model.layers.0.self_attn.q_proj.bias"], weights["model.layers.0.self_attn.q_proj.bias"]
    )


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "F16"), ("Q4_1", "F16")],
)
def test_matrices_keep_their_values_in_a_type_that_holds_them(kind: str, stored: str, tmp_path: Path) -> None:
    builder = _builder().store_as(gguf.GGMLQuantizationType[kind])
    _, tensors, kinds = _read(builder.write(tmp_path / "tiny.gguf"))
    name, source = "model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"
    assert kinds[name] == stored
    assert kinds["model.norm.weight"] == "F32"
    kept = gguf.quants.dequantize(
        gguf.quants.quantize(builder.tensors[source], builder.types[source]), builder.types[source]
    )
    np.testing.assert_array_equal(tensors[name], kept)


def test_llama31_rope_is_recognised_in_its_table(tmp_path: Path) -> None:
    rule = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    builder = _builder(rope_theta=500_000.0, rope_scaling=rule)
    plain = inverse_frequencies(500_000.0, builder.architecture.head_dim, None)
    divisors = plain / builder.architecture.rope.inverse_frequencies(builder.architecture.head_dim)
    builder.tensors["rope_freqs.weight"] = divisors.astype(np.float32)
    architecture, _, _ = _read(builder.write(tmp_path / "tiny.gguf"))
    assert architecture.rope.scaling == builder.architecture.rope.scaling

    builder.tensors["rope_freqs.weight"] = np.linspace(1, 8, len(plain), dtype=np.float32)
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight is not the rope rule of Llama 3\.1"):
        _read(builder.write(tmp_path / "other.gguf"))


_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 2.0, "rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope.scaling.factor": 0.0, "rope.scale_linear": 4.0}, None),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.type": "linear"}, None),
        ({"rope.scaling.type": "yarn", "rope.scale_linear": 4.0}, _YARN),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
                "rope.scaling.yarn_beta_fast": 32.0,
            },
            {**_YARN, "original_max_position_embeddings": 64},
        ),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.attn_factor": 0.5},
            {**_YARN, "attention_factor": 0.5 * (0.1 * math.log(4.0) + 1.0)},
        ),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 1.0}, None),
    ],
)
def test_rope_scaling_is_that_of_llama_cpps_loader(
    settings: dict[str, Any], expected: dict[str, Any] | None, tmp_path: Path
) -> None:
    builder = _builder("qwen2")
    builder.settings.update(settings)
    architecture, _, _ = _read(builder.write(tmp_path / "tiny.gguf"))
    assert (
        architecture.rope.scaling
        == Architecture.from_config(tiny_config("qwen2", rope_scaling=expected)).rope.scaling
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_count": 8}, r"llama with experts \(mixture of experts\)' is not supported"),
        ({"rope.dimension_count": 8}, "rotated dimensions 8 differ"),
        ({"rope.scaling.type": "longrope"}, "rope scaling 'longrope' is not supported"),
        ({"rope.scaling.factor": 0.5}, r"rope\.scaling\.factor is 0\.5; it must be at least 1"),
        ({"rope.scaling.attn_factor": 0.5}, r"attn_factor 0\.5 is not supported with rope scaling 'linear'"),
        ({"rope.scaling.alpha": 2.0}, r"rope\.scaling\.alpha 2 is not supported"),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "rope.scaling.yarn_beta_fast": 16.0},
            r"yarn_beta_fast 16 is not supported, and llama\.cpp does not read it for llama",
        ),
        ({"attention.causal": False}, r"llama\.attention\.causal is False"),
        ({"nextn_predict_layers": 1}, r"llama\.nextn_predict_layers is 1"),
        ({"embedding_length_out": 32}, r"llama\.embedding_length_out is 32"),
        ({"attention.head_count_kv": [1, 2]}, "head_count_kv differs from layer to layer"),
    ],
)
def test_unsupported_settings_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    builder = _builder()
    builder.settings.update(settings)
    with pytest.raises(UnsupportedModelError, match=message):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_sizes_may_be_given_layer_by_layer(tmp_path: Path) -> None:
    builder = _builder()
    for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length"):
        builder.settings[key] = [builder.settings[key]] * 2
    architecture, _, _ = _read(builder.write(tmp_path / "tiny.gguf"))
    assert architecture.num_kv_heads == builder.architecture.num_kv_heads


def test_rope_scaled_by_table_and_rule_is_refused(tmp_path: Path) -> None:
    builder = _builder()
    builder.tensors["rope_freqs.weight"] = np.ones(builder.architecture.head_dim // 2, np.float32)
    builder.settings["rope.scaling.factor"] = 2.0
    with pytest.raises(UnsupportedModelError, match="rope is scaled twice"):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_a_rope_table_is_a_stray_tensor_where_llama_cpp_reads_none(tmp_path: Path) -> None:
    builder = _builder("qwen2")
    builder.tensors["rope_freqs.weight"] = np.ones(builder.architecture.head_dim // 2, np.float32)
    with pytest.raises(TargetError, match=r"unexpected: rope_freqs\.weight"):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_granites_multipliers_may_be_left_out(tmp_path: Path) -> None:
    builder = _builder("granite")
    for key in ("embedding_scale", "attention.scale", "residual_scale"):
        del builder.settings[key]
    architecture, _, _ = _read(builder.write(tmp_path / "tiny.gguf"))
    assert (architecture.embedding_multiplier, architecture.residual_multiplier) == (1.0, 1.0)
    assert architecture.softmax_scale == builder.architecture.head_dim**-0.5
    builder.settings["rope.scaling.finetuned"] = False
    with pytest.raises(UnsupportedModelError, match=r"granite\.rope\.scaling\.finetuned is False"):
        _read(builder.write(tmp_path / "unrotated.gguf"))


def test_what_a_file_of_gemma_3_leaves_to_llama_cpp(tmp_path: Path) -> None:
    builder = _builder("gemma3_text", num_hidden_layers=7)
    for key in ("attention.sliding_window_pattern", "rope.freq_base_swa", "rope.scaling.type"):
        del builder.settings[key]
    architecture, _, _ = _read(builder.write(tmp_path / "tiny.gguf"))
    assert architecture.sliding_layers == (0, 1, 2, 3, 4, 6)
    assert (architecture.sliding_rope, architecture.sliding_window) == (Rope(10_000.0), 9)
    builder.settings["attention.sliding_window_pattern"] = [True, False] * 3 + [True]
    architecture, _, _ = _read(builder.write(tmp_path / "listed.gguf"))
    assert architecture.sliding_layers == (0, 2, 4, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"final_logit_softcapping": 30.0}, r"gemma3\.final_logit_softcapping is 30\.0"),
        ({"rope.scaling.type": "yarn"}, "rope scaling 'yarn' is not supported for gemma3"),
        ({"attention.sliding_window_pattern": 0}, "sliding_window_pattern is 0; it must be at least 1"),
        ({"attention.sliding_window_pattern": [True]}, "sliding_window_pattern has 1 entries for 3 layers"),
    ],
)
def test_other_files_of_gemma_3_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    builder = _builder("gemma3_text")
    builder.settings.update(settings)
    with pytest.raises(UnsupportedModelError, match=message):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_other_architectures_are_refused_by_name(tmp_path: Path) -> None:
    builder = _builder()
    builder.architecture_name = "gemma2"
    with pytest.raises(
        UnsupportedModelError, match=r"tiny\.gguf: model type 'gemma2' is not supported.*Qwen3"
    ):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    builder = _builder()
    builder.tensors["blk.0.attn_sinks.weight"] = builder.tensors.pop("blk.1.ffn_up.weight")
    with pytest.raises(TargetError, match=r"missing: blk\.1\.ffn_up\.weight; unexpected: blk\.0\.attn_sinks"):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    builder = _builder()
    builder.tensors["output_norm.weight"] = np.ones(8, np.float32)
    with pytest.raises(TargetError, match=r"output_norm\.weight has shape \[8\]; the metadata says \[64\]"):
        _read(builder.write(tmp_path / "tiny.gguf"))


def test_missing_and_mistyped_settings_are_named(tmp_path: Path) -> None:
    builder = _builder()
    del builder.settings["feed_forward_length"]
    with pytest.raises(TargetError, match=r"metadata llama\.feed_forward_length is missing"):
        _read(builder.write(tmp_path / "missing.gguf"))
    builder.settings["feed_forward_length"] = "many"
    with pytest.raises(TargetError, match=r"llama\.feed_forward_length is of type str; it must be int"):
        _read(builder.write(tmp_path / "mistyped.gguf"))


def test_parts_of_a_split_model_are_refused_with_the_command_that_joins_them(tmp_path: Path) -> None:
    builder = _builder()
    builder.metadata["split.count"] = 2
    with pytest.raises(TargetError, match="llama-gguf-split --merge"):
        GgufFile(builder.write(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
def test_a_truncated_file_is_named(share: float, tmp_path: Path) -> None:
    path, _ = tiny_gguf(tmp_path / "tiny.gguf")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(TargetError, match=r"tiny\.gguf is not a complete GGUF file"):
        GgufFile(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="does not exist"):
        GgufFile(tmp_path / "none.gguf")
