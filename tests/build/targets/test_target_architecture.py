"""config.json of every family is read as Transformers reads it, and what cannot be run is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.rope import LinearScaling, Llama3Scaling, Rope, YarnScaling
from tests.build.targets.tiny_models import FAMILIES, tiny_config, write_tokenizer

LLAMA3_RULE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_ids_are_read(family: str) -> None:
    architecture = Architecture.from_config(tiny_config(family))
    assert architecture.family == family
    assert (architecture.hidden_size, architecture.num_heads, architecture.num_kv_heads) == (64, 4, 2)
    assert architecture.head_dim == (32 if family in ("qwen3", "gemma3_text") else 16)
    assert architecture.eos_token_ids == (2,)


def test_families_differ_where_they_should() -> None:
    read = {family: Architecture.from_config(tiny_config(family)) for family in FAMILIES}
    assert [family for family in FAMILIES if read[family].qkv_bias] == ["qwen2"]
    assert [family for family in FAMILIES if read[family].qk_norm] == ["qwen3", "gemma3_text"]
    assert [family for family in FAMILIES if read[family].no_rope_layers] == ["smollm3"]
    assert read["smollm3"].no_rope_layers == (3,)
    assert read["granite"].softmax_scale == 0.015625
    assert read["granite"].logits_divisor == 8.0
    assert read["llama"].softmax_scale == 0.25
    assert not any(read[family].o_bias or read[family].mlp_bias for family in FAMILIES)


def test_values_that_a_family_assumes_when_the_file_is_silent() -> None:
    required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {**dict.fromkeys(required, 64), "num_attention_heads": 32, "hidden_size": 4096}
    llama = Architecture.from_config({"model_type": "llama", **sizes})
    assert (llama.num_kv_heads, llama.head_dim, llama.rope.theta) == (32, 128, 10_000.0)
    assert Architecture.from_config({"model_type": "mistral", **sizes}).num_kv_heads == 8
    assert Architecture.from_config({"model_type": "qwen3", **sizes}).head_dim == 128
    smollm3 = Architecture.from_config({"model_type": "smollm3", **sizes})
    assert smollm3.tie_word_embeddings
    assert smollm3.rope.theta == 2_000_000.0


def test_rope_settings_in_both_spellings_of_transformers() -> None:
    old = tiny_config("llama", rope_theta=5e5, rope_scaling={**LLAMA3_RULE, "type": "llama3"})
    new = tiny_config("llama", rope_parameters={**LLAMA3_RULE, "rope_theta": 5e5})
    del new["rope_theta"], new["rope_scaling"]
    assert Architecture.from_config(old) == Architecture.from_config(new)
    assert Architecture.from_config(new).rope.scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_default_rope_in_the_new_spelling_is_no_scaling() -> None:
    config = tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    architecture = Architecture.from_config(config)
    assert architecture.rope.scaling is None
    assert architecture.rope.theta == 1e6


def test_yarn_temperature_multiplies_cosines_and_sines() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    architecture = Architecture.from_config(tiny_config("qwen2", rope_scaling=scaling))
    assert isinstance(architecture.rope.scaling, YarnScaling)
    assert architecture.rope.attention_scaling == pytest.approx(1.1386294)  # 0.1 ln 4 + 1


@pytest.mark.parametrize(
    ("family", "changes", "window", "layers"),
    [
        ("mistral", {"sliding_window": 16}, 16, (0, 1)),
        ("mistral", {"sliding_window": None}, None, ()),
        ("mistral", {"sliding_window": 256}, None, ()),
        ("qwen2", {"sliding_window": 16}, None, ()),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, 16, (1,)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}, None, ()),
        (
            "qwen3",
            {
                "use_sliding_window": True,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            16,
            (0,),
        ),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 16}, 16, (3,)),
        ("gemma3_text", {"num_hidden_layers": 7, "sliding_window_pattern": 6}, 9, (0, 1, 2, 3, 4, 6)),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, 9, (1,)),
        # Its sliding layers keep a rotary embedding of their own.
        ("gemma3_text", {"sliding_window": 256}, None, (0, 2)),
    ],
)
def test_a_sliding_window_is_named_only_where_it_hides_something(
    family: str, changes: dict[str, Any], window: int | None, layers: tuple[int, ...]
) -> None:
    architecture = Architecture.from_config(tiny_config(family, **changes))
    assert (architecture.sliding_window, architecture.sliding_layers) == (window, layers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not supported; it must be None"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0 is not supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        ({"hidden_activation": "relu"}, "hidden_activation 'relu' .* must be 'gelu_pytorch_tanh'"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer type 'chunked_attention' is not supported"),
        (
            {"rope_parameters": {"rope_type": "default"}},
            "rope_parameters has rope_type; it must have full_attention",
        ),
    ],
)
def test_what_gemma_3_may_have_besides_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Architecture.from_config(tiny_config("gemma3_text", **changes))


def test_gemma_3_as_released_names_little(tmp_path: Path) -> None:
    """The `text_config` of the model of 4 billion weights leaves most to Transformers' defaults."""
    sizes = {
        "hidden_size": 2560,
        "intermediate_size": 10_240,
        "num_hidden_layers": 34,
        "sliding_window": 1024,
    }
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    read = Architecture.from_config({"model_type": "gemma3_text", **sizes, **scaling})
    assert (read.num_heads, read.num_kv_heads, read.head_dim, read.vocab_size) == (8, 4, 256, 262_208)
    assert [layer for layer in range(34) if layer not in read.sliding_layers] == [5, 11, 17, 23, 29]
    assert (read.rope.theta, read.rope.scaling) == (1e6, LinearScaling(8.0))
    assert read.sliding_rope == Rope(1e4)
    assert (read.softmax_scale, read.tie_word_embeddings, read.eos_token_ids) == (1 / 16, True, (1,))


@pytest.mark.parametrize("family", ["qwen3", "smollm3", "gemma3_text"])
def test_a_list_of_layer_types_that_is_too_short_is_named(family: str) -> None:
    config = tiny_config(family, use_sliding_window=True, sliding_window=9, layer_types=["full_attention"])
    with pytest.raises(TargetError, match=r"layer_types has 1 entries for \d layers"):
        Architecture.from_config(config)


def test_parameter_shapes_name_every_tensor() -> None:
    shapes = Architecture.from_config(tiny_config("llama", attention_bias=True)).parameter_shapes()
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    assert shapes["model.layers.1.self_attn.o_proj.bias"] == (64,)
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]
    assert len(shapes) == 3 + 2 * (9 + 4)
    assert "lm_head.weight" not in Architecture.from_config(tiny_config("qwen2")).parameter_shapes()


@pytest.mark.parametrize("name", ["gemma2", "phi3", "mixtral", "mamba", "gpt2", "qwen3_moe", "granitemoe"])
def test_other_families_are_refused_by_name_with_those_supported(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=rf"'{name}' is not supported.*Llama.*Mistral.*Qwen3.*Granite"
    ):
        Architecture.from_config({**tiny_config("llama"), "model_type": name})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; it must be 'silu'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "default", "beta": 1}}, "settings that are not supported: beta"),
        ({"rope_parameters": {"full_attention": {}}}, "settings that are not supported: full_attention"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Architecture.from_config(tiny_config("llama", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a positive whole number"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"hidden_size": 66}, "hidden_size 66 is no multiple of num_attention_heads 4"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope factor is None"),
        ({"rope_scaling": {**LLAMA3_RULE, "high_freq_factor": 1.0}}, "high_freq_factor 1.0 must be above"),
        ({"model_type": None}, "model_type is missing"),
    ],
)
def test_impossible_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        Architecture.from_config({**tiny_config("llama"), **changes})


def test_too_short_list_of_smollm3_layers_is_named() -> None:
    with pytest.raises(TargetError, match="no_rope_layers has 2 entries for 4 layers"):
        Architecture.from_config(tiny_config("smollm3", no_rope_layers=[1, 0]))


def test_end_tokens_of_the_generation_config_win(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, '
        '"intermediate_size": 8, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "eos_token_id": 2}'
    )
    assert Architecture.from_directory(tmp_path).eos_token_ids == (2,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    assert Architecture.from_directory(tmp_path).eos_token_ids == (2, 5)


@pytest.mark.parametrize(
    ("config", "eos_token", "expected"),
    [
        ({"eos_token_id": None}, "<|im_end|>", (2,)),
        ({"eos_token_id": None}, {"content": "<|im_end|>", "special": True}, (2,)),
        ({"eos_token_id": None}, None, ()),
        ({"eos_token_id": 0}, "<|im_end|>", (0, 2)),
        ({"eos_token_id": [1, 9999]}, "<|im_end|>", (1, 2)),
        ({"model_type": "qwen2"}, "<|im_end|>", (2,)),
        ({"model_type": "smollm3"}, "<|endoftext|>", (0,)),
    ],
)
def test_where_the_model_names_no_end_token_its_tokenizer_does(
    config: dict[str, Any], eos_token: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    content = {key: value for key, value in tiny_config("llama").items() if key != "eos_token_id"}
    (tmp_path / "config.json").write_text(json.dumps(content | config))
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos_token}))
    assert Architecture.from_directory(tmp_path).eos_token_ids == expected


def test_an_end_token_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama", eos_token_id="</s>")))
    with pytest.raises(TargetError, match=r"config\.json: eos_token_id is '</s>'; it must be a token id"):
        Architecture.from_directory(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff"])
def test_a_damaged_config_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(TargetError, match=r"config\.json"):
        Architecture.from_directory(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"config\.json is missing"):
        Architecture.from_directory(tmp_path)
