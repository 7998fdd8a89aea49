"""EAGLE-3 drafters of every trainer become what TensorRT-LLM 1.2.1's LLM API loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from build.converters.dispatch import convert_drafter, restore_drafter
from build.converters.errors import ConversionError
from tests.build.converters import targets
from tests.speculators import equations, released
from tests.speculators.test_eagle import POSITIONS, VISIBLE, rows
from tests.speculators.test_eagle3 import nested


@pytest.mark.parametrize("trainer", ["eagle", "specforge", "speculators"])
def test_the_loaders_layout_is_written_and_computes_the_same(trainer: str, tmp_path: Path) -> None:
    config, weights = released.eagle3(layer="midlayer" if trainer == "eagle" else "layers.0")
    if trainer == "speculators":
        weights["embed_tokens.weight"] = targets.matrices()["model.embed_tokens.weight"]
    source = released.write(
        tmp_path / "drafter", nested(config) if trainer == "speculators" else config, weights
    )
    convert_drafter("eagle3", source, targets.huggingface(tmp_path / "target"), tmp_path / "out")

    written = load_file(tmp_path / "out" / "model.safetensors")
    _, plain = released.eagle3()
    assert released.same(written, plain)
    assert [str(written[name].dtype) for name in ("d2t", "t2d")] == ["int64", "bool"]
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["architectures"] == ["LlamaForCausalLM"]
    assert (content["draft_vocab_size"], content["vocab_size"], content["num_hidden_layers"]) == (20, 48, 1)
    assert not {"transformer_layer_config", "speculators_model_type", "speculators_config"} & content.keys()
    for left, right in zip(
        equations.eagle3(config, plain, rows(1), rows(2), POSITIONS, VISIBLE),
        equations.eagle3(content, written, rows(1), rows(2), POSITIONS, VISIBLE),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


def test_a_full_vocabulary_still_names_its_size_by_which_the_loader_knows_a_drafter(tmp_path: Path) -> None:
    source = released.write(tmp_path / "drafter", *released.eagle3(None))
    convert_drafter(
        "eagle3", source, targets.huggingface(tmp_path / "target"), tmp_path / "out", dtype="bfloat16"
    )
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (content["draft_vocab_size"], content["torch_dtype"]) == (48, "bfloat16")
    assert "d2t" not in load_file(tmp_path / "out" / "model.safetensors")


def test_target_layers_that_are_not_the_default_are_told(tmp_path: Path) -> None:
    eagle_config = {"eagle_aux_hidden_state_layer_ids": [0, 3, 7]}
    source = released.write(tmp_path / "drafter", *released.eagle3(eagle_config=eagle_config))
    done = convert_drafter("eagle3", source, targets.huggingface(tmp_path / "target"), tmp_path / "out")
    assert done.notes == ("speculative_config needs eagle3_layers_to_capture: [0, 3, 7]",)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _, weights = released.eagle3()
    plain = targets.huggingface(tmp_path / "plain")
    cases: list[tuple[dict[str, Any], dict[str, Any], Path, str]] = [
        (
            {"norm_before_residual": True},
            {},
            plain,
            "norm_before_residual, which TensorRT-LLM 1.2.1 does not compute",
        ),
        (
            {},
            {},
            targets.huggingface(tmp_path / "a", hidden_size=32),
            "width 16; .* hidden_size 32: it is another",
        ),
        ({}, {}, targets.huggingface(tmp_path / "b", vocabulary=52), "vocabulary of 48; .* vocab_size 52"),
        ({}, {"embed_tokens.weight": np.ones((48, 16), np.float32)}, plain, "token embeddings of its own"),
        ({}, {}, targets.engine_checkpoint(tmp_path / "c"), "EAGLE-3 runs on the LLM API"),
        ({}, {"d2t": np.arange(20) * 2}, plain, "d2t"),
    ]
    for number, (changes, more, target, message) in enumerate(cases):
        config = released.eagle3(**changes)[0]
        source = released.write(tmp_path / f"drafter{number}", config, weights | more)
        with pytest.raises(ConversionError, match=message):
            convert_drafter("eagle3", source, target, tmp_path / "out")
        assert not (tmp_path / "out").exists(), message
    with pytest.raises(ConversionError, match="no checkpoint of TensorRT-LLM with 'eagle3'"):
        restore_drafter("eagle3", plain, tmp_path / "out")


def test_embeddings_that_were_rounded_are_still_the_targets(tmp_path: Path) -> None:
    config, weights = released.eagle3()
    exact = targets.matrices()["model.embed_tokens.weight"]
    weights["embed_tokens.weight"] = (exact * (1 + 2.0**-9)).astype(np.float32)
    source = released.write(tmp_path / "drafter", config, weights)
    convert_drafter("eagle3", source, targets.huggingface(tmp_path / "target"), tmp_path / "out")
    assert "embed_tokens.weight" not in load_file(tmp_path / "out" / "model.safetensors")
