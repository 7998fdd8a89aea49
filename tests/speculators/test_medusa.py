"""Medusa heads: both layouts of the Medusa repository in and out, and the published equations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speculators.formats.errors import CheckpointError
from speculators.medusa.checkpoint import (
    first_heads,
    hidden_size,
    load_checkpoint,
    save_checkpoint,
    vocab_size,
)
from tests.speculators import equations, released

FILE = "medusa_lm_head.safetensors"


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_both_layouts_come_back_bit_for_bit(outputs: bool, blocks: int, tmp_path: Path) -> None:
    config, weights = released.medusa(blocks=blocks, outputs=outputs)
    checkpoint = load_checkpoint(released.write(tmp_path / "in", config, weights, FILE))
    assert hidden_size(checkpoint) == released.WIDTH
    assert vocab_size(checkpoint) == (released.VOCABULARY if outputs else None)
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out")
    again = load_checkpoint(tmp_path / "out")
    assert released.same(again.tensors, weights)
    assert again.config.base_model_name_or_path == "tiny/target"


@pytest.mark.torch
def test_pickles_are_read_and_written(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config, weights = released.medusa()
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights, "medusa_lm_head.pt"))
    assert released.same(checkpoint.tensors, weights)
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out", "pt")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["config.json", "medusa_lm_head.pt"]
    assert released.same(load_checkpoint(tmp_path / "out").tensors, weights)


def test_more_heads_in_the_file_than_in_the_config_are_believed(tmp_path: Path) -> None:
    config, weights = released.medusa(heads=5)
    checkpoint = load_checkpoint(released.write(tmp_path, config | {"medusa_num_heads": 2}, weights, FILE))
    assert checkpoint.config.medusa_num_heads == 5
    fewer = first_heads(checkpoint, 2)
    assert fewer.config.medusa_num_heads == 2
    assert set(fewer.tensors) == {name for name in weights if name[0] in "01"}
    with pytest.raises(CheckpointError, match="6 heads were asked for; there are 5"):
        first_heads(checkpoint, 6)


def test_heads_inside_a_whole_model_are_found(tmp_path: Path) -> None:
    config, weights = released.medusa()
    whole = {f"medusa_head.{name}": values for name, values in weights.items()}
    whole["model.norm.weight"] = np.ones(released.WIDTH, np.float32)
    assert released.same(load_checkpoint(released.write(tmp_path, config, whole)).tensors, weights)


def test_heads_that_are_not_what_they_say_are_refused_by_name(tmp_path: Path) -> None:
    config, weights = released.medusa(heads=2)
    with pytest.raises(CheckpointError, match=r"missing 2\.0\.linear\.bias"):
        load_checkpoint(released.write(tmp_path / "few", config | {"medusa_num_heads": 3}, weights, FILE))
    with pytest.raises(CheckpointError, match=r"0\.0\.linear\.weight is missing"):
        load_checkpoint(released.write(tmp_path / "none", config, {}, FILE))
    half = {name: values for name, values in weights.items() if name != "1.1.weight"}
    with pytest.raises(CheckpointError, match=r"missing 1\.1\.weight"):
        load_checkpoint(released.write(tmp_path / "half", config, half, FILE))
    wide = weights | {"1.0.linear.bias": np.zeros(7, np.float32)}
    with pytest.raises(
        CheckpointError, match=r"1\.0\.linear\.bias has shape \[7\]; config\.json says \[16\]"
    ):
        load_checkpoint(released.write(tmp_path / "wide", config, wide, FILE))
    with pytest.raises(CheckpointError, match=r"looked for medusa_lm_head\.safetensors, medusa_lm_head\.pt"):
        empty = tmp_path / "empty"
        empty.mkdir()
        (empty / "config.json").write_text(json.dumps(config))
        load_checkpoint(empty)


@pytest.mark.torch
@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_forward_is_that_of_the_published_equations(outputs: bool, blocks: int, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from speculators.medusa.model import MedusaHeads

    config, weights = released.medusa(blocks=blocks, outputs=outputs)
    model = MedusaHeads.from_checkpoint(load_checkpoint(released.write(tmp_path, config, weights, FILE)))
    random = np.random.default_rng(2)
    hidden = random.standard_normal((5, released.WIDTH)).astype(np.float32)
    base = random.standard_normal((released.VOCABULARY, released.WIDTH)).astype(np.float32)
    given = None if outputs else torch.from_numpy(base)
    with torch.no_grad():
        logits = model(torch.from_numpy(hidden), given).numpy()
    for t in range(5):
        expected = equations.medusa(
            weights, 3, blocks, hidden[t].astype(np.float64), None if outputs else base
        )
        equations.assert_agrees(logits[:, t], expected)
    with pytest.raises(ValueError, match="Medusa heads"):
        model(torch.from_numpy(hidden), torch.from_numpy(base) if outputs else None)
    assert released.same(model.to_checkpoint().tensors, weights)


@pytest.mark.torch
def test_heads_are_loud_until_loaded_and_start_as_the_target_itself() -> None:
    torch = pytest.importorskip("torch")
    from speculators.medusa.config import MedusaConfig
    from speculators.medusa.model import MedusaHeads

    model = MedusaHeads(MedusaConfig(medusa_num_heads=2), released.WIDTH, released.VOCABULARY)
    assert model(torch.ones(1, released.WIDTH)).isnan().all()
    base, hidden = torch.randn(released.VOCABULARY, released.WIDTH), torch.randn(3, released.WIDTH)
    model.initialize(base)
    torch.testing.assert_close(model(hidden), (hidden @ base.T).expand(2, -1, -1))
