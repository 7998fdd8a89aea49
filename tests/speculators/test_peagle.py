"""P-EAGLE: the layouts of its trainers in, one that vLLM reads out, and the published equations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from speculators.eagle3.checkpoint import load_checkpoint as load_eagle3
from speculators.eagle3.checkpoint import target_ids
from speculators.eagle3.config import Eagle3Config
from speculators.formats.errors import CheckpointError
from speculators.peagle.checkpoint import load_checkpoint, save_checkpoint
from speculators.peagle.config import widened
from tests.speculators import equations, released

MASKS = ("mask_token_id", "pard_token", "ptd_token_id")


def nested(config: dict[str, Any]) -> dict[str, Any]:
    """The same drafter as the speculators library describes it (`PEagleSpeculatorConfig`, 2026-08)."""
    outer = ("draft_vocab_size", "architectures", "ptd_token_id")
    return {
        "architectures": ["PEagleSpeculator"],
        "speculators_model_type": "peagle",
        "speculators_version": "0.6.0",
        "speculators_config": {"algorithm": "peagle"},
        "draft_vocab_size": config["draft_vocab_size"],
        "norm_before_residual": False,
        "norm_before_fc": False,
        "embed_requires_grad": True,
        "target_hidden_size": None,
        "mask_token_id": config["ptd_token_id"],
        "transformer_layer_config": {key: value for key, value in config.items() if key not in outer},
    }


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_published_checkpoint_comes_back_bit_for_bit(layers: int, mask: str, tmp_path: Path) -> None:
    config, weights = released.peagle(layers, mask=mask)
    checkpoint = load_checkpoint(released.write(tmp_path / "in", config, weights))
    assert (checkpoint.config.num_hidden_layers, checkpoint.config.mask_token_id) == (layers, 45)
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out")
    assert released.same(load_file(tmp_path / "out" / "model.safetensors"), weights)
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        content["ptd_token_id"] == content["mask_token_id"] == 45
    )  # vLLM; the speculators library, AutoModel
    assert content["num_hidden_layers"] == layers
    assert load_checkpoint(tmp_path / "out").config == checkpoint.config.stored_as("float32").changed(
        ptd_token_id=45
    )


def test_the_nested_config_of_the_speculators_library_is_the_same_drafter(tmp_path: Path) -> None:
    config, weights = released.peagle()
    plain = load_checkpoint(released.write(tmp_path / "plain", config, weights)).config
    foreign = load_checkpoint(released.write(tmp_path / "nested", nested(config), weights)).config
    assert foreign.content() == plain.content()


def test_names_and_shapes_that_others_give_are_those_of_the_library(tmp_path: Path) -> None:
    """AutoModel's `model.` in front, a mask of two axes, `midlayer`, norms that vLLM's class has and does not use."""
    config, weights = released.peagle()
    others = {
        f"model.{name.replace('layers.0.', 'midlayer.')}": values
        for name, values in weights.items()
        if name not in ("mask_hidden", "lm_head.weight", "d2t", "t2d")
    }
    others |= {name: weights[name] for name in ("lm_head.weight", "d2t", "t2d")}
    others["mask_hidden"] = weights["mask_hidden"].reshape(1, -1)
    others["model.layers.1.hidden_norm.weight"] = np.ones(released.WIDTH, np.float32)
    checkpoint = load_checkpoint(released.write(tmp_path, config | {"num_hidden_layers": 32}, others))
    assert released.same(checkpoint.tensors, weights)
    assert checkpoint.config.num_hidden_layers == 2


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    config, weights = released.peagle()
    without = {key: value for key, value in config.items() if key != "ptd_token_id"}
    unmasked = {name: values for name, values in weights.items() if name != "mask_hidden"}
    broken = {name: values for name, values in weights.items() if name != "layers.1.mlp.up_proj.weight"}
    cases: list[tuple[dict, dict, str]] = [
        (without, weights, "key 'mask_token_id' is missing"),
        (config | {"pard_token": 3}, weights, "named differently: pard_token 3, ptd_token_id 45"),
        (config | {"ptd_token_id": 48}, weights, "mask_token_id = 48; vocab_size is 48"),
        (config | {"ptd_token_id": "45"}, weights, "mask_token_id = '45': Input should be a valid integer"),
        (config, unmasked, "missing mask_hidden"),
        (config, broken, r"missing layers\.1\.mlp\.up_proj\.weight"),
        (
            config,
            weights | {"mask_hidden": np.ones((1, 1, 16), np.float32)},
            r"mask_hidden has shape \[1, 1, 16\]",
        ),
        (config | {"speculators_model_type": "eagle3"}, weights, "it must be 'peagle'"),
    ]
    for number, (content, tensors, message) in enumerate(cases):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(released.write(tmp_path / str(number), content, tensors))


def test_eagle3_refuses_a_drafter_that_drafts_in_parallel_and_names_the_method(tmp_path: Path) -> None:
    for mask in MASKS:
        with pytest.raises(CheckpointError, match=f"{mask} = 45 makes it a drafter .* method: peagle"):
            load_eagle3(released.write(tmp_path / mask, *released.peagle(1, mask=mask)))


@pytest.mark.torch
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_before_residual": True, "fc_norm": True, "norm_output": True},
        {"model_type": "qwen3"},
        {"attention_bias": True},
    ],
    ids=str,
)
def test_a_block_is_that_of_the_published_equations(
    changes: dict[str, Any], layers: int, size: int, tmp_path: Path
) -> None:
    """The text is read in two passes over the cache, and the block with the second."""
    torch = pytest.importorskip("torch")
    from speculators.peagle.model import PEagle

    config, weights = released.peagle(layers, **changes)
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights))
    model = PEagle.from_checkpoint(checkpoint)
    assert released.same(model.to_checkpoint().tensors, checkpoint.tensors)
    random = np.random.default_rng(3)
    features, following, mask = (
        random.standard_normal(shape).astype(np.float32)
        for shape in [(6, 3 * released.WIDTH), (6, released.WIDTH), (released.WIDTH,)]
    )
    rows = 6 + size - 1
    with torch.no_grad():
        masked = model.mask_hidden[0].expand(size - 1, -1)
        hidden = model.fuse(torch.cat([torch.from_numpy(features), masked]))
        embedded = torch.cat([torch.from_numpy(following), torch.from_numpy(mask).expand(size - 1, -1)])
        visible, past = torch.ones(1, rows, rows, dtype=torch.bool).tril(), None
        for part in (slice(0, 4), slice(4, rows)):
            seen = visible[:, part, : part.stop]
            values, past = model(
                hidden[None, part], embedded[None, part], torch.arange(rows)[None, part], seen, past
            )
        found = model.logits(values[0, -size:])
    equations.assert_agrees(found.numpy(), equations.peagle(config, weights, features, following, mask, size))
    drafted = torch.arange(20)
    np.testing.assert_array_equal(model.target_ids(drafted).numpy(), target_ids(checkpoint))


def test_what_is_made_of_eagle3s_config_says_nothing_of_one_layer() -> None:
    """Transformers refuses a list of layer types of another length than the number of layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Eagle3Config.parse(
        {**sizes, "vocab_size": 300, "rms_norm_eps": 1e-5, "layer_types": ["full_attention"], "bias": True},
        "test",
    )
    assert config.content()["layer_types"] == ["full_attention"]
    made = widened(config, num_hidden_layers=3, mask_token_id=7)
    assert (made.num_hidden_layers, made.mask_token_id, made.bias, made.embed_requires_grad) == (
        3,
        7,
        True,
        False,
    )
    assert "layer_types" not in made.content()
