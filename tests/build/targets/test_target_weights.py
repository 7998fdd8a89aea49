"""Weights are read lazily, exactly, and only if they are the architecture's own."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load, save_file

from build.targets.architecture import Architecture
from build.targets.errors import TargetError, UnsupportedModelError
from build.targets.storage import TensorPlan, write_safetensors
from build.targets.weights import load_weights
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface, write_sharded

CONFIG = tiny_config("llama")
WEIGHTS = random_weights(Architecture.from_config(CONFIG))
TIED_CONFIG = tiny_config("llama", tie_word_embeddings=True)


@pytest.mark.parametrize("write", [write_huggingface, write_sharded])
def test_tensors_come_back_as_stored(write: Any, tmp_path: Path) -> None:
    loaded = load_weights(write(tmp_path, CONFIG, WEIGHTS))
    assert set(loaded) == set(WEIGHTS)
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(loaded[name], values)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(kind: Any, tmp_path: Path) -> None:
    halves = {name: values.astype(kind) for name, values in WEIGHTS.items()}
    loaded = load_weights(write_huggingface(tmp_path, CONFIG, halves))
    for name, values in halves.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], values.astype(np.float32))


def test_missing_and_unexpected_tensors_are_named(tmp_path: Path) -> None:
    wrong = dict(WEIGHTS)
    wrong["model.layers.0.self_attn.q_proj.bias"] = np.zeros(64, np.float32)
    del wrong["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(
        TargetError, match=r"missing model\.layers\.1\.mlp\.up_proj.*unexpected .*q_proj\.bias"
    ):
        load_weights(write_huggingface(tmp_path, CONFIG, wrong))


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"lm_head\.weight, .* and 17 more"):
        load_weights(write_huggingface(tmp_path, CONFIG, {}))


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    wrong = {**WEIGHTS, "model.norm.weight": np.ones(63, np.float32)}
    with pytest.raises(TargetError, match=r"model\.norm\.weight has shape \[63\]; config\.json says \[64\]"):
        load_weights(write_huggingface(tmp_path, CONFIG, wrong))


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {**WEIGHTS, "model.norm.weight": np.ones(64, np.int8)}
    with pytest.raises(UnsupportedModelError, match=r"stored as I8; weights must be one of F32, F16, BF16"):
        load_weights(write_huggingface(tmp_path, CONFIG, wrong))


def test_rotary_tables_of_old_checkpoints_are_ignored(tmp_path: Path) -> None:
    extra = {**WEIGHTS, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    assert set(load_weights(write_huggingface(tmp_path, CONFIG, extra))) == set(WEIGHTS)


def test_a_tied_head_may_be_stored_twice_but_not_differ(tmp_path: Path) -> None:
    tied = {**WEIGHTS, "lm_head.weight": WEIGHTS["model.embed_tokens.weight"]}
    assert "lm_head.weight" not in load_weights(write_huggingface(tmp_path, TIED_CONFIG, tied))
    with pytest.raises(TargetError, match="set tie_word_embeddings to false"):
        load_weights(write_huggingface(tmp_path, TIED_CONFIG, WEIGHTS))


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_huggingface(tmp_path, CONFIG, WEIGHTS) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TargetError, match=r"model\.safetensors is damaged or incomplete"):
        load_weights(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write_sharded(tmp_path, CONFIG, WEIGHTS) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(TargetError, match=r"names files that are missing: model-00002-of-00002\.safetensors"):
        load_weights(tmp_path)


def test_an_index_without_a_map_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, CONFIG, WEIGHTS)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(TargetError, match="weight_map is missing or empty"):
        load_weights(tmp_path)


def test_no_weights_at_all_is_named(tmp_path: Path) -> None:
    (write_huggingface(tmp_path, CONFIG, WEIGHTS) / "model.safetensors").unlink()
    with pytest.raises(TargetError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load_weights(tmp_path)


def test_written_files_are_those_of_the_safetensors_package(tmp_path: Path) -> None:
    values = {"a": WEIGHTS["lm_head.weight"], "b": WEIGHTS["model.norm.weight"]}
    written: list[int] = []
    plans = [TensorPlan(name, "F32", array.shape, array.copy) for name, array in values.items()]
    write_safetensors(tmp_path / "ours", plans, written.append)
    save_file(values, tmp_path / "theirs", metadata={"format": "pt"})
    assert sum(written) == sum(array.nbytes for array in values.values())
    ours, theirs = (load((tmp_path / name).read_bytes()) for name in ("ours", "theirs"))
    assert set(ours) == set(theirs)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_values_too_large_for_the_stored_type_are_refused(tmp_path: Path) -> None:
    plan = TensorPlan("large", "F16", (1,), lambda: np.array([1e6], np.float32))
    with pytest.raises(ValueError, match="large holds values that are not finite as F16"):
        write_safetensors(tmp_path / "out", [plan], lambda _: None)
