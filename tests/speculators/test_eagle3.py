"""EAGLE-3: the layouts of three trainers in, that of the EAGLE repository out, and the published equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from speculators.eagle3.checkpoint import load_checkpoint, save_checkpoint, target_ids, vocabulary_maps
from speculators.formats.errors import CheckpointError
from tests.speculators import equations, released
from tests.speculators.test_eagle import POSITIONS, VISIBLE, in_two_passes, rows


def nested(config: dict[str, Any]) -> dict[str, Any]:
    """The same drafter as the speculators library describes it."""
    layer = {key: value for key, value in config.items() if key not in ("draft_vocab_size", "architectures")}
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.1.0",
        "speculators_config": {"algorithm": "eagle3"},
        "draft_vocab_size": config["draft_vocab_size"],
        "norm_before_residual": False,
        "target_hidden_size": None,
        "transformer_layer_config": layer,
    }


@pytest.mark.parametrize("draft_vocabulary", [20, None])
@pytest.mark.parametrize("layer", ["midlayer", "layers.0"])
def test_the_released_layouts_load_and_are_written_as_the_eagle_repository_does(
    draft_vocabulary: int | None, layer: str, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(released.write(tmp_path / "in", *released.eagle3(draft_vocabulary, layer)))
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out")
    _, expected = released.eagle3(draft_vocabulary)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert released.same(written, expected)
    again = load_checkpoint(tmp_path / "out")
    assert released.same(again.tensors, checkpoint.tensors)
    assert again.config.draft_vocab_size == (draft_vocabulary or released.VOCABULARY)


def test_the_nested_config_of_the_speculators_library_is_the_same_drafter(tmp_path: Path) -> None:
    config, weights = released.eagle3(layer="layers.0")
    plain = load_checkpoint(released.write(tmp_path / "plain", config, weights)).config
    foreign = load_checkpoint(released.write(tmp_path / "nested", nested(config), weights)).config
    assert foreign.content() == plain.content()


def test_offsets_give_the_ids_that_the_mask_names(tmp_path: Path) -> None:
    config, weights = released.eagle3()
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights))
    np.testing.assert_array_equal(target_ids(checkpoint), np.flatnonzero(weights["t2d"]))
    assert [str(checkpoint.tensors[name].dtype) for name in ("d2t", "t2d")] == ["int64", "bool"]


@given(st.sets(st.integers(0, 59), min_size=1, max_size=60))
def test_vocabulary_maps_are_inverse_to_each_other(kept: set[int]) -> None:
    maps = vocabulary_maps(np.array(sorted(kept, reverse=True)), 60)
    ids = np.arange(len(kept)) + maps["d2t"]
    assert ids.tolist() == sorted(kept)
    assert np.flatnonzero(maps["t2d"]).tolist() == sorted(kept)


@pytest.mark.parametrize("kept", [[1, 1], [-1], [60], []])
def test_a_draft_vocabulary_needs_distinct_ids_of_the_target(kept: list[int]) -> None:
    with pytest.raises(CheckpointError, match="distinct ids from 0 to 59"):
        vocabulary_maps(np.array(kept, dtype=np.int64), 60)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    config, weights = released.eagle3()
    ids = np.flatnonzero(weights["t2d"])
    other = np.roll(weights["t2d"], 1)
    cases: list[tuple[dict, dict, str]] = [
        ({}, {"d2t": ids}, r"d2t holds offsets, not ids|d2t holds ids where offsets are expected"),
        ({}, {"d2t": weights["d2t"] + 48}, r"d2t maps draft token \d+ to \d+; the target has ids 0 to 47"),
        ({}, {"t2d": other}, "d2t and t2d name different tokens"),
        ({}, {"d2t": np.zeros(20, np.float32)}, "d2t is stored as float32; it must hold integers"),
        ({"draft_vocab_size": 24}, {}, r"lm_head\.weight has shape \[20, 16\]; config\.json says \[24, 16\]"),
        ({"draft_vocab_size": 64}, {}, "draft_vocab_size = 64 is above vocab_size = 48"),
        ({}, {"layers.1.mlp.up_proj.weight": ids}, "has 2 decoder layers; EAGLE-3 drafters of one layer"),
        ({"target_hidden_size": 20}, {}, r"fc\.weight has shape \[16, 48\]; config\.json says \[16, 60\]"),
        (
            {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 5]}},
            {},
            r"fc\.weight .* says \[16, 32\]",
        ),
    ]
    for number, (changes, more, message) in enumerate(cases):
        directory = released.write(tmp_path / str(number), config | changes, weights | more)
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(directory)


def test_maps_beside_a_full_vocabulary_must_say_nothing(tmp_path: Path) -> None:
    config, weights = released.eagle3(None)
    identity = {"d2t": np.zeros(48, np.int64), "t2d": np.ones(48, np.bool_)}
    checkpoint = load_checkpoint(released.write(tmp_path / "identity", config, weights | identity))
    assert "d2t" not in checkpoint.tensors
    with pytest.raises(CheckpointError, match="d2t or t2d reduces the vocabulary"):
        load_checkpoint(
            released.write(tmp_path / "reduced", config, weights | identity | {"d2t": np.ones(48, np.int64)})
        )


@pytest.mark.torch
@pytest.mark.parametrize("draft_vocabulary", [20, None])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_before_residual": True},
        {"norm_before_fc": True},
        {"fc_norm": True, "norm_output": True},
        {"model_type": "qwen3"},
    ],
    ids=str,
)
def test_eagle3_is_that_of_the_published_equations(
    changes: dict[str, Any], draft_vocabulary: int | None, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from speculators.eagle3.model import Eagle3

    config, weights = released.eagle3(draft_vocabulary, **changes)
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights))
    model = Eagle3.from_checkpoint(checkpoint)
    features, embedded = np.concatenate([rows(6), rows(7), rows(8)], axis=-1), rows(9)
    hidden = model.fuse(torch.from_numpy(features)).detach().numpy()
    equations.assert_agrees(hidden, equations.eagle3_fusion(config, weights, features))
    fed_back, expected = equations.eagle3(config, weights, hidden, embedded, POSITIONS, VISIBLE)
    output = in_two_passes(model, hidden, embedded)
    equations.assert_agrees(output, fed_back)
    logits = model.logits(torch.from_numpy(output)).detach().numpy()
    equations.assert_agrees(logits, expected)
    drafted = torch.arange(draft_vocabulary or released.VOCABULARY)
    np.testing.assert_array_equal(model.target_ids(drafted).numpy(), target_ids(checkpoint))
    assert released.same(model.to_checkpoint().tensors, checkpoint.tensors)


@pytest.mark.torch
def test_a_model_is_loud_until_it_is_loaded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from speculators.eagle3.model import Eagle3

    config = load_checkpoint(released.write(tmp_path, *released.eagle3())).config
    model = Eagle3(config)
    assert all(parameter.isnan().all() for parameter in model.parameters())
    assert model.target_ids(torch.tensor([0])).item() < 0
