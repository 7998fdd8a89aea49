"""ReDrafter heads on a TensorRT-LLM checkpoint compute what they computed, and come back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from build.converters.dispatch import convert_drafter, restore_drafter
from build.converters.errors import ConversionError
from speculators.redrafter.checkpoint import load_checkpoint
from tests.build.converters import engines, targets
from tests.speculators import equations, released


@settings(max_examples=15, deadline=None)
@given(
    tp_size=st.sampled_from([1, 2, 4, 8]),
    blocks=st.integers(1, 3),
    exit_width=st.sampled_from([2 * released.WIDTH, 24]),
    rnn=st.booleans(),
)
def test_the_engine_computes_the_heads_logits_and_gives_the_head_back(
    tp_size: int, blocks: int, exit_width: int, rnn: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("redrafter")
    config, weights = released.redrafter(blocks, exit_width, rnn)
    source = released.write(root / "head", config, weights)
    target = targets.engine_checkpoint(root / "target", tp_size)
    convert_drafter("redrafter", source, target, root / "out")
    random = np.random.default_rng(4)
    hidden, embedded = random.standard_normal(released.WIDTH), random.standard_normal((4, released.WIDTH))
    logits = engines.redrafter(*engines.load(root / "out"), hidden, embedded)
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    np.testing.assert_allclose(logits, equations.redrafter(config, wide, hidden, embedded), rtol=1e-9)
    restore_drafter("redrafter", root / "out", root / "again")
    assert released.same(load_checkpoint(root / "again").tensors, weights)
    assert load_checkpoint(root / "again").config.rnn == rnn


@pytest.mark.parametrize(
    ("base", "architecture"),
    [("LlamaForCausalLM", "ReDrafterForLLaMALM"), ("Qwen2ForCausalLM", "ReDrafterForQWenLM")],
)
def test_the_config_has_the_keys_of_the_release(base: str, architecture: str, tmp_path: Path) -> None:
    source = released.write(tmp_path / "head", *released.redrafter())
    quantization = {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    target = targets.engine_checkpoint(tmp_path / "target", architecture=base, quantization=quantization)
    convert_drafter(
        "redrafter", source, target, tmp_path / "out", num_beams=4, draft_length=3, greedy_search=False
    )
    old, new = (
        json.loads((directory / "config.json").read_text()) for directory in (target, tmp_path / "out")
    )
    assert new == old | {
        "base_model_architecture": base,
        "architecture": architecture,
        "redrafter_num_layers": 2,
        "redrafter_hidden_size": 16,
        "redrafter_exit_dim": 32,
        "redrafter_is_rnn": True,
        "redrafter_num_beams": 4,
        "redrafter_draft_len_per_beam": 3,
        "redrafter_greedy_search": False,
        "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head", "drafter.*"]},
    }


def test_the_source_layout_has_the_newer_names(tmp_path: Path) -> None:
    config, weights = released.redrafter()
    older = {name.replace("lm_head.", "lm_heads."): values for name, values in weights.items()}
    source = released.write(tmp_path / "head", config, older)
    convert_drafter(
        "redrafter", source, targets.huggingface(tmp_path / "t"), tmp_path / "out", layout="source"
    )
    assert released.same(load_checkpoint(tmp_path / "out").tensors, weights)


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = released.write(tmp_path / "head", *released.redrafter())
    odd_config, odd = released.redrafter()
    odd["lm_head.2.weight"] = odd["lm_head.2.weight"][:47]
    ragged = released.write(tmp_path / "ragged", odd_config | {"vocab_size": 47}, odd)
    plain = targets.engine_checkpoint(tmp_path / "plain")
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (
            ragged,
            targets.engine_checkpoint(tmp_path / "a", 2, vocabulary=47),
            {},
            "47 is not divisible by the tensor",
        ),
        (
            source,
            targets.engine_checkpoint(tmp_path / "b", 1, 2),
            {},
            "2 pipeline stages; ReDrafter runs on one",
        ),
        (
            source,
            targets.engine_checkpoint(tmp_path / "c", architecture="GPTForCausalLM"),
            {},
            "puts ReDrafter on",
        ),
        (
            source,
            targets.engine_checkpoint(tmp_path / "d", hidden_size=32),
            {},
            "width 16; .* hidden_size 32",
        ),
        (
            source,
            targets.engine_checkpoint(tmp_path / "e", vocabulary=56),
            {},
            "vocabulary of 48; .* vocab_size 56",
        ),
        (source, plain, {"num_beams": 0}, "num_beams = 0"),
    ]
    for drafter, target, choices, message in cases:
        with pytest.raises(ConversionError, match=message):
            convert_drafter("redrafter", drafter, target, tmp_path / "out", **choices)
        assert not (tmp_path / "out").exists(), message
    with pytest.raises(
        ConversionError, match="is a LlamaForCausalLM checkpoint, none of ReDrafterForLLaMALM"
    ):
        restore_drafter("redrafter", plain, tmp_path / "out")
