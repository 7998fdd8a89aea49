"""ReDrafter heads: Apple's layout in and out, and the published equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from speculators.formats.errors import CheckpointError
from speculators.redrafter.checkpoint import load_checkpoint, save_checkpoint
from tests.speculators import equations, released

SHAPES = [(2, 32, True), (1, 24, True), (3, 32, False), (2, 20, False)]


@pytest.mark.parametrize(("blocks", "exit_width", "rnn"), SHAPES)
def test_the_released_layout_comes_back_bit_for_bit(
    blocks: int, exit_width: int, rnn: bool, tmp_path: Path
) -> None:
    config, weights = released.redrafter(blocks, exit_width, rnn)
    checkpoint = load_checkpoint(released.write(tmp_path / "in", config, weights))
    (tmp_path / "out").mkdir()
    save_checkpoint(checkpoint, tmp_path / "out")
    assert released.same(load_checkpoint(tmp_path / "out").tensors, weights)
    assert (checkpoint.config.model_extra or {})["num_lookback_tokens"] == 0


@pytest.mark.parametrize(
    ("old", "new"), [("lm_heads.", "lm_head."), ("0.", "lm_head."), ("input_projs.", "input_proj.")]
)
def test_older_names_are_read(old: str, new: str, tmp_path: Path) -> None:
    config, weights = released.redrafter(exit_width=24)
    older = {
        old + name.removeprefix(new) if name.startswith(new) else name: values
        for name, values in weights.items()
    }
    assert older.keys() != weights.keys()
    assert released.same(load_checkpoint(released.write(tmp_path, config, older)).tensors, weights)


@pytest.mark.torch
def test_pickles_are_read(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config, weights = released.redrafter()
    assert released.same(
        load_checkpoint(released.write(tmp_path, config, weights, "model.pt")).tensors, weights
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rnn": False}, r"unexpected rnn_u\.bias, rnn_u\.weight, rnn_w\.weight"),
        ({"exit_dim": 24}, r"missing input_proj\.bias, input_proj\.weight"),
        ({"num_draft_layers": 1}, r"unexpected .*lm_head\.2\.weight"),
        ({"vocab_size": 40}, r"lm_head\.2\.weight has shape \[48, 32\]; config\.json says \[40, 32\]"),
        ({"vocab_size": -1}, r"vocab_size = -1"),
        ({"hidden_size": "16"}, r"hidden_size = '16'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    config, weights = released.redrafter()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(released.write(tmp_path, config | changes, weights))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    config, weights = released.redrafter()
    del config["exit_dim"]
    with pytest.raises(CheckpointError, match="key 'exit_dim' is missing"):
        load_checkpoint(released.write(tmp_path, config, weights))


def test_a_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    config, weights = released.redrafter()
    with pytest.raises(CheckpointError, match=r"lm_heads?\.2\.weight is there twice"):
        load_checkpoint(
            released.write(tmp_path, config, weights | {"lm_heads.2.weight": weights["lm_head.2.weight"]})
        )


@pytest.mark.torch
@pytest.mark.parametrize(("blocks", "exit_width", "rnn"), SHAPES)
def test_forward_is_that_of_the_published_equations(
    blocks: int, exit_width: int, rnn: bool, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from speculators.redrafter.model import Redrafter

    config, weights = released.redrafter(blocks, exit_width, rnn)
    model = Redrafter.from_checkpoint(load_checkpoint(released.write(tmp_path, config, weights)))
    random = np.random.default_rng(3)
    hidden = random.standard_normal((2, released.WIDTH)).astype(np.float32)
    embedded = random.standard_normal((2, 5, released.WIDTH)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(hidden), torch.from_numpy(embedded)).numpy()
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    for row in range(2):
        expected = equations.redrafter(config, wide, hidden[row].astype(np.float64), embedded[row])
        equations.assert_agrees(logits[:, row], expected)
    assert released.same(model.to_checkpoint().tensors, weights)
    assert all(parameter.isnan().all() for parameter in Redrafter(model.config).parameters())
