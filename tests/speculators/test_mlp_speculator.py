"""MLP speculators: IBM's layout in and out, and the published equations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from speculators.formats.errors import CheckpointError
from speculators.mlp_speculator.checkpoint import load_checkpoint, save_checkpoint
from tests.speculators import equations, released


@pytest.mark.parametrize("tied", [False, True])
def test_the_released_layout_loads_and_is_written_back(tied: bool, tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(tied=tied)
    checkpoint = load_checkpoint(released.write(tmp_path, config, weights))
    save_checkpoint(checkpoint, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() <= weights.keys()
    assert all(np.array_equal(written[name], weights[name]) for name in written)
    again = load_checkpoint(tmp_path)
    assert released.same(again.tensors, checkpoint.tensors)
    assert again.config == checkpoint.config
    assert (checkpoint.config.model_extra or {})["transformers_version"] == "4.38.2"


def test_tied_weights_are_stored_once_under_the_names_that_vllm_looks_for(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(released.write(tmp_path, *released.mlp_speculator(tied=True)))
    save_checkpoint(checkpoint, tmp_path)
    parts = ("emb.0.weight", "proj.0.weight", "proj.1.weight", "ln.0.weight", "ln.0.bias", "head.0.weight")
    assert set(load_file(tmp_path / "model.safetensors")) == {f"speculator.{part}" for part in parts}


def test_tied_weights_may_be_stored_under_any_stage_and_without_prefix(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(tied=True)
    kept = {"proj.0.weight", "emb.2.weight", "proj.2.weight", "ln.1.weight", "ln.2.bias", "head.1.weight"}
    bare = {name.removeprefix("speculator."): values for name, values in weights.items()}
    sparse = {name: values for name, values in bare.items() if name in kept}
    tensors = load_checkpoint(released.write(tmp_path / "sparse", config, sparse)).tensors
    assert released.same(tensors, load_checkpoint(released.write(tmp_path / "full", config, weights)).tensors)


def test_tied_weights_that_differ_are_refused(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator(tied=True)
    weights["speculator.head.2.weight"] = weights["speculator.head.2.weight"] + 1
    with pytest.raises(CheckpointError, match=r"head\.2\.weight differs from speculator\.head\.0\.weight"):
        load_checkpoint(released.write(tmp_path, config, weights))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_predict": 4, "top_k_tokens_per_head": [3] * 4}, r"missing .*emb\.3\.weight.* and 1 more"),
        ({"n_predict": 2}, r"top_k_tokens_per_head has 3 entries for n_predict = 2"),
        ({"inner_dim": 20}, r"emb\.0\.weight has shape \[48, 24\]; config\.json says \[48, 20\]"),
        ({"vocab_size": 0}, r"vocab_size = 0"),
        ({"model_type": "llama"}, r"model_type = 'llama'.*mlp_speculator"),
        ({"emb_dim": None}, r"emb_dim"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(changes: dict, message: str, tmp_path: Path) -> None:
    config, weights = released.mlp_speculator()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(released.write(tmp_path, config | changes, weights))


def test_unexpected_tensors_are_refused_by_name(tmp_path: Path) -> None:
    config, weights = released.mlp_speculator()
    with pytest.raises(CheckpointError, match=r"unexpected ln0\.weight"):
        load_checkpoint(
            released.write(tmp_path, config, weights | {"speculator.ln0.weight": np.ones(3, np.float32)})
        )


@pytest.mark.torch
@settings(max_examples=12, deadline=None)
@given(stages=st.integers(2, 5), width=st.sampled_from([0, 8, 40]), tied=st.booleans(), scaled=st.booleans())
def test_forward_is_that_of_the_published_equations(
    stages: int, width: int, tied: bool, scaled: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch = pytest.importorskip("torch")
    from speculators.mlp_speculator.model import MlpSpeculator

    config, weights = released.mlp_speculator(stages, width or released.WIDTH, tied, scaled)
    config["inner_dim"] = width
    directory = released.write(tmp_path_factory.mktemp("mlp"), config, weights)
    model = MlpSpeculator.from_checkpoint(load_checkpoint(directory))
    random = np.random.default_rng(1)
    hidden = random.standard_normal((2, 4, released.WIDTH)).astype(np.float32)
    tokens = random.integers(0, released.VOCABULARY, (2, 4 + stages - 1))
    with torch.no_grad():
        logits = model(torch.from_numpy(hidden), torch.from_numpy(tokens)).numpy()
    for row in range(2):
        for t in range(4):
            expected = equations.mlp_speculator(
                config, weights, hidden[row, t].astype(np.float64), tokens[row, t:]
            )
            equations.assert_agrees(logits[:, row, t], expected)


@pytest.mark.torch
def test_a_model_is_loud_until_it_is_loaded_and_exact_when_it_is_saved(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from speculators.mlp_speculator.model import MlpSpeculator

    checkpoint = load_checkpoint(released.write(tmp_path, *released.mlp_speculator(tied=True)))
    empty = MlpSpeculator(checkpoint.config)
    assert all(parameter.isnan().all() for parameter in empty.parameters())
    with pytest.raises(CheckpointError, match="not finite"):
        save_checkpoint(empty.to_checkpoint(), tmp_path)
    assert released.same(
        MlpSpeculator.from_checkpoint(checkpoint).to_checkpoint().tensors, checkpoint.tensors
    )
    empty.initialize()
    assert torch.isfinite(
        empty(torch.zeros(1, 2, released.WIDTH), torch.zeros(1, 4, dtype=torch.int64))
    ).all()
