"""EAGLE-3 checkpoints as their writers publish them: SpecForge, ModelOpt, the speculators library, AngelSlim, EAGLE.

What a key means is taken from the writers' and readers' own code: speculators `models/eagle3`, vLLM 0.32
`llama_eagle3.py` and `transformers_utils/configs/speculators`, SGLang 0.5 `llama_eagle3.py`, ModelOpt 0.47
`hf_spec_configs.py`, SpecForge `modeling/draft/llama3_eagle.py`, AngelSlim 0.5 `target_model_wrapper.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from speculators.eagle3.checkpoint import load_checkpoint, save_checkpoint
from speculators.eagle3.config import Eagle3Config
from speculators.formats.errors import CheckpointError
from tests.speculators import released
from tests.speculators.layouts import eagle3_of_the_speculators_library
from tests.speculators.test_eagle3 import nested

IDS = "eagle_aux_hidden_state_layer_ids"
SHIPPED = Path(__file__).parents[2] / "speculators" / "weights" / "smollm2-135m" / "eagle3"


def loaded(path: Path, config: dict[str, Any], weights: released.Weights) -> Any:
    return load_checkpoint(released.write(path, config, weights))


@pytest.mark.parametrize(
    ("keys", "outputs"),
    [
        ({IDS: [2, 15, 27]}, [1, 14, 26]),
        ({"eagle_config": {IDS: [1, 14, 26], "use_aux_hidden_state": True}}, [1, 14, 26]),
        ({"aux_hidden_states_layer_ids": [1, 14, 26]}, [1, 14, 26]),
        ({IDS: [2, 15, 27], "eagle_config": {IDS: [1, 14, 26]}}, [1, 14, 26]),
        ({IDS: None, "eagle_config": {IDS: []}}, None),
        ({}, None),
    ],
)
def test_the_layers_that_are_read_are_counted_as_the_keys_writer_counts(
    keys: dict[str, Any], outputs: list[int] | None, tmp_path: Path
) -> None:
    config = loaded(tmp_path / "flat", *released.eagle3(**keys)).config
    assert config.target_layers == outputs
    plain, weights = released.eagle3(layer="layers.0")
    assert loaded(tmp_path / "nested", nested(plain) | keys, weights).config.target_layers == outputs


def test_layers_that_are_named_differently_are_refused(tmp_path: Path) -> None:
    same = released.eagle3(**{IDS: [1, 14, 26], "eagle_config": {IDS: [1, 14, 26]}})
    with pytest.raises(
        CheckpointError, match=r"named differently: .* the outputs of \[0, 13, 25\], eagle_config"
    ):
        loaded(tmp_path, *same)


def test_what_is_written_names_the_layers_so_that_every_reader_takes_the_same(tmp_path: Path) -> None:
    checkpoint = loaded(tmp_path / "in", *released.eagle3())
    told = type(checkpoint)(checkpoint.config.reading([1, 14, 26]), checkpoint.tensors)
    (tmp_path / "out").mkdir()
    save_checkpoint(told, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content[IDS] == [2, 15, 27]  # speculators, vLLM, llama.cpp
    assert content["eagle_config"][IDS] == [1, 14, 26]  # SGLang, ModelOpt
    assert load_checkpoint(tmp_path / "out").config.target_layers == [1, 14, 26]
    assert not {"norm_output", "norm_before_fc", "fc_norm"} & content.keys()


def test_the_shipped_drafter_reads_what_it_was_trained_on() -> None:
    content = json.loads((SHIPPED / "config.json").read_text())
    assert content[IDS] == [2, 15, 27]
    assert Eagle3Config.read(SHIPPED).target_layers == [1, 14, 26]


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["LlamaForCausalLMEagle3"]},
        {"architectures": ["Eagle3LlamaForCausalLM"], "num_hidden_layers": 40},
        {"model_type": "phi3"},
        {
            "model_type": "llama4_text",
            "bos_token_id": None,
            "head_dim": None,
            "rope_scaling": None,
            "mlp_bias": None,
        },
        {"rope_theta": None, "rope_scaling": {"rope_type": "default", "rope_theta": 10000}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"logit_scale": 1.0, "sliding_window": 64, "use_sliding_window": False, "pretraining_tp": 1},
        {"layer_types": ["sliding_attention"], "sliding_window": 4096},
        {"eagle_config": {"use_last_layernorm": True, "use_mtp_layernorm": False, "parallel_draft_step": 1}},
    ],
    ids=str,
)
def test_configs_are_read_by_drafters_rules(changes: dict[str, Any], tmp_path: Path) -> None:
    config, weights = released.eagle3(layer="layers.0")
    plain = loaded(tmp_path / "plain", config, weights)
    other = loaded(tmp_path / "other", config | changes, weights)
    assert released.same(other.tensors, plain.tensors)
    for name in ("num_hidden_layers", "rope_theta", "rope_scaling", "head_width", "qk_norm", "norm_output"):
        assert getattr(other.config, name) == getattr(plain.config, name), name


def test_a_layer_of_qwen3_is_known_by_its_norms(tmp_path: Path) -> None:
    config, weights = released.eagle3(layer="layers.0", model_type="qwen3")
    assert loaded(tmp_path / "flat", config, weights).config.qk_norm
    assert loaded(tmp_path / "nested", nested(config), weights).config.qk_norm
    assert loaded(tmp_path / "named llama", config | {"model_type": "llama"}, weights).config.qk_norm
    without = {
        name: values for name, values in weights.items() if "_norm.weight" not in name or "self" not in name
    }
    assert not loaded(tmp_path / "named qwen3", config, without).config.qk_norm


@pytest.mark.torch
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_by_their_index(name: str, tmp_path: Path) -> None:
    config, weights = released.eagle3()
    whole = loaded(tmp_path / "whole", config, weights)
    directory = released.write(tmp_path / "shards", config, {})
    (directory / "model.safetensors").unlink()
    stem, _, suffix = name.rpartition(".")
    shards = {
        f"{stem}-{part + 1:05}-of-00002.{suffix}": dict(list(weights.items())[part::2]) for part in (0, 1)
    }
    for file, tensors in shards.items():
        released.write(directory, config, tensors, file)
    places = {tensor: file for file, tensors in shards.items() for tensor in tensors}
    (directory / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))
    assert released.same(load_checkpoint(directory).tensors, whole.tensors)
    (directory / next(iter(shards))).unlink()
    with pytest.raises(CheckpointError, match=r"-00001-of-00002\.\w+ is missing"):
        load_checkpoint(directory)


def test_tensors_that_other_writers_name_otherwise_or_leave_out(tmp_path: Path) -> None:
    config, weights = released.eagle3(layer="layers.0")
    plain = loaded(tmp_path / "plain", config, weights)
    without = {name: values for name, values in weights.items() if name != "t2d"}  # ModelOpt
    prefixed = {
        name if "2" in name or "lm_head" in name else f"model.{name}": weights[name] for name in weights
    }
    training = weights | {"verifier_norm.weight": np.ones(16, np.float32)}
    training["verifier_lm_head.weight"] = np.ones((20, 16), np.float32)
    for number, changed in enumerate((without, prefixed, training)):
        assert released.same(loaded(tmp_path / str(number), config, changed).tensors, plain.tensors)
    config, weights = released.eagle3(fc_norm=True)
    older = {"0": "low", "1": "mid", "2": "high"}
    renamed = {
        f"aux_norm_{older[name.split('.')[1]]}.weight" if name.startswith("fc_norm") else name: values
        for name, values in weights.items()
    }
    sglang = config | {"fc_norm": None, "use_aux_norm": True}
    assert released.same(loaded(tmp_path / "sglang", sglang, renamed).tensors, weights)


def test_a_full_vocabulary_may_leave_its_output_matrix_to_the_target(tmp_path: Path) -> None:
    config, weights = released.eagle3(None)
    del weights["lm_head.weight"]
    assert "lm_head.weight" not in loaded(tmp_path / "full", config, weights).tensors
    config, weights = released.eagle3()
    del weights["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        loaded(tmp_path / "reduced", config, weights)


@pytest.mark.parametrize(
    ("keys", "switch"),
    [
        ({"norm_output": True}, "norm_output"),
        ({"eagle_config": {"return_hidden_post_norm": True}}, "norm_output"),
        ({"eagle_config": {"norm_before_fc": True}}, "norm_before_fc"),
        ({"fc_norm": True}, "fc_norm"),
        ({"norm_before_residual": True}, "norm_before_residual"),
    ],
)
def test_switches_that_change_the_computation_are_honoured(keys: dict[str, Any], switch: str) -> None:
    config, _ = released.eagle3(**keys)
    assert getattr(Eagle3Config.parse(config, "config"), switch)
    assert Eagle3Config.parse(config, "config").content()[switch]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"speculators_model_type": "peagle"}, "speculators_model_type is 'peagle'; it must be 'eagle3'"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"qkv_bias": True}, "qkv_bias = True is not supported; it must be False"),
        ({"mlp_bias": True}, "mlp_bias = True"),
        ({"logit_scale": 0.5}, r"logit_scale = 0\.5 is not supported; it must be 1"),
        ({"kv_lora_rank": 512}, "kv_lora_rank = 512 is not supported; it must be absent"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
        ({"ptd_token_id": 5}, "ptd_token_id = 5"),
        (
            {"layer_types": ["sliding_attention"], "sliding_window": 64},
            "sliding window of 64 is not supported",
        ),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding window of 64"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, "rope_scaling has type 'mrope'"),
        ({"rope_scaling": {"type": "default", "mrope_section": [1, 1, 2]}}, "not supported: mrope_section"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state = False"),
        ({"eagle_config": {"use_last_layernorm": False}}, "use_last_layernorm = False"),
        ({"eagle_config": {"use_mtp_layernorm": True}}, "use_mtp_layernorm = True"),
        ({"eagle_config": {"eh_proj_before_attn": True}}, "eh_proj_before_attn = True"),
        ({"eagle_config": {"parallel_draft_step": 4}}, "parallel_draft_step = 4"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    config, weights = released.eagle3()
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, config | keys, weights)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({IDS: ["a"]}, f"{IDS}.0 = 'a'"),
        ({"eagle_config": {IDS: ["a"]}}, rf"eagle_config\.{IDS} = \['a'\]; it must be a list"),
        ({"eagle_config": {IDS: 3}}, rf"eagle_config\.{IDS} = 3; it must be a list"),
        ({"eagle_config": "x"}, "eagle_config = 'x'"),
        ({"aux_hidden_states_layer_ids": "1"}, "aux_hidden_states_layer_ids = '1'"),
        ({"transformer_layer_config": "x"}, "transformer_layer_config = 'x'; it must be an object"),
        ({"rope_scaling": "x"}, "rope_scaling = 'x'"),
        ({"use_sliding_window": True, "sliding_window": 8, "max_position_embeddings": "x"}, "'x'"),
    ],
)
def test_values_of_another_type_are_named(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    config, weights = released.eagle3()
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, config | keys, weights)


def test_a_shard_file_alone_is_no_checkpoint(tmp_path: Path) -> None:
    directory = released.write(tmp_path, *released.eagle3())
    (directory / "model.safetensors").rename(directory / "model-00001-of-00002.safetensors")
    save_file({}, directory / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"has no weights; looked for model\.safetensors"):
        load_checkpoint(directory)


def test_the_shipped_drafter_is_the_same_in_the_layout_of_the_speculators_library(tmp_path: Path) -> None:
    there = eagle3_of_the_speculators_library(SHIPPED, tmp_path / "there", tmp_path / "verifier")
    found, own = load_checkpoint(there), load_checkpoint(SHIPPED)
    assert released.same(found.tensors, own.tensors)
    for key in ("target_layers", "output_size", "feature_width", "norm_before_residual", "rms_norm_eps"):
        assert getattr(found.config, key) == getattr(own.config, key), key
