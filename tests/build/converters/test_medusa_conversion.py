"""Medusa heads on a TensorRT-LLM checkpoint compute what they computed, and come back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from build.converters.dispatch import convert_drafter, restore_drafter
from build.converters.errors import ConversionError
from speculators.medusa.checkpoint import load_checkpoint
from tests.build.converters import engines, targets
from tests.speculators import equations, released

FILE = "medusa_lm_head.safetensors"


def heads(directory: Path, **choices: Any) -> tuple[Path, Any, released.Weights]:
    config, weights = released.medusa(**choices)
    return released.write(directory, config, weights, FILE), config, weights


@settings(max_examples=20, deadline=None)
@given(
    tp_size=st.sampled_from([1, 2, 4, 8]),
    pp_size=st.sampled_from([1, 2]),
    count=st.integers(1, 4),
    blocks=st.integers(1, 2),
    vocabulary=st.integers(30, 48),
)
def test_the_engine_computes_the_heads_logits_and_gives_the_heads_back(
    tp_size: int,
    pp_size: int,
    count: int,
    blocks: int,
    vocabulary: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root = tmp_path_factory.mktemp("medusa")
    source, config, weights = heads(root / "heads", heads=count, blocks=blocks)
    cut = {n: w[:vocabulary] if n.endswith(f".{blocks}.weight") else w for n, w in weights.items()}
    released.write(source, config, cut, FILE)
    target = targets.engine_checkpoint(root / "target", tp_size, pp_size, vocabulary=vocabulary)
    convert_drafter("medusa", source, target, root / "out", tp_size=tp_size)

    written, ranks = engines.load(root / "out")
    assert len(ranks) == tp_size * pp_size
    hidden = np.random.default_rng(1).standard_normal(released.WIDTH)
    expected = equations.medusa(cut, count, blocks, hidden)
    for stage in range(pp_size):
        logits = engines.medusa(written, ranks[stage * tp_size : (stage + 1) * tp_size], hidden)
        assert logits.shape[1] % tp_size == 0
        np.testing.assert_allclose(logits[:, :vocabulary], expected, rtol=1e-9)
        assert not logits[:, vocabulary:].any()

    restore_drafter("medusa", root / "out", root / "again")
    assert released.same(load_checkpoint(root / "again").tensors, cut)


@pytest.mark.parametrize("target_kind", ["engine", "huggingface", "tied"])
def test_heads_without_output_matrices_get_the_targets(target_kind: str, tmp_path: Path) -> None:
    source, _, weights = heads(tmp_path / "heads", outputs=False)
    if target_kind == "engine":
        target, layout = targets.engine_checkpoint(tmp_path / "target", tp_size=4), "checkpoint"
    else:
        target, layout = targets.huggingface(tmp_path / "target", tied=target_kind == "tied"), "source"
    convert_drafter("medusa", source, target, tmp_path / "out", layout=layout)
    shared = targets.matrices()["model.embed_tokens.weight" if target_kind == "tied" else "lm_head.weight"]
    hidden = np.random.default_rng(1).standard_normal(released.WIDTH)
    expected = equations.medusa(weights, 3, 1, hidden, shared)
    if layout == "checkpoint":
        logits = engines.medusa(*engines.load(tmp_path / "out"), hidden)
    else:
        logits = equations.medusa(load_checkpoint(tmp_path / "out").tensors, 3, 1, hidden)
    np.testing.assert_allclose(logits, expected, rtol=1e-9)


def test_the_target_is_kept_byte_for_byte_and_its_config_extended(tmp_path: Path) -> None:
    source, _, _ = heads(tmp_path / "heads")
    target = targets.engine_checkpoint(tmp_path / "target", 2, quantization={"quant_algo": "W8A16"})
    before = targets.files(target)
    done = convert_drafter("medusa", source, target, tmp_path / "out", max_draft_length=31)
    assert targets.files(target) == before
    for rank in range(2):
        old, new = (load_file(d / f"rank{rank}.safetensors") for d in (target, tmp_path / "out"))
        assert released.same(old, {name: new[name] for name in old})
        assert all(name.startswith("medusa_heads.") for name in new.keys() - old.keys())
    old_config, config = (json.loads((d / "config.json").read_text()) for d in (target, tmp_path / "out"))
    quantization = config.pop("quantization")
    assert quantization["exclude_modules"][0] == "*lm_head"
    assert quantization["exclude_modules"][-1] == "medusa_heads.*"
    added = {
        "architecture": "MedusaForCausalLM",
        "model_type": "llama",
        "num_medusa_heads": 3,
        "num_medusa_layers": 1,
        "max_draft_len": 31,
    }
    del old_config["quantization"]
    assert config == old_config | added
    assert done.notes == ("trtllm-build needs --speculative_decoding_mode medusa",)


def test_the_engines_type_is_taken_and_fewer_heads_are_possible(tmp_path: Path) -> None:
    source, _, weights = heads(tmp_path / "heads")
    target = targets.engine_checkpoint(tmp_path / "target", dtype="bfloat16")
    convert_drafter("medusa", source, target, tmp_path / "out", num_heads=2, dtype="bfloat16")
    rank = load_file(tmp_path / "out" / "rank0.safetensors")
    bias = rank["medusa_heads.1.medusa_layers.0.linear.bias"]
    assert released.same({"b": bias}, {"b": weights["1.0.linear.bias"].astype(targets.DTYPES["bfloat16"])})
    assert "medusa_heads.2.lm_head.weight" not in rank


def test_the_source_layout_is_what_nvidias_script_reads(tmp_path: Path) -> None:
    source, _, weights = heads(tmp_path / "heads")
    done = convert_drafter(
        "medusa",
        source,
        targets.huggingface(tmp_path / "target"),
        tmp_path / "out",
        layout="source",
        dtype="float16",
    )
    written = load_file(tmp_path / "out" / FILE)
    assert released.same(written, {name: values.astype(np.float16) for name, values in weights.items()})
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["medusa_num_heads"], config["medusa_num_layers"]) == (3, 1)
    assert done.notes == ("convert_checkpoint.py needs --num_medusa_heads 3",)


def test_qwen_targets_are_named_and_others_refused(tmp_path: Path) -> None:
    source, _, _ = heads(tmp_path / "heads")
    qwen = targets.engine_checkpoint(tmp_path / "qwen", architecture="Qwen2ForCausalLM", qwen_type="qwen2")
    convert_drafter("medusa", source, qwen, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["qwen_type"]) == ("qwen2", "qwen2")
    for number, (changes, message) in enumerate(
        [
            (
                {"architecture": "GPTForCausalLM"},
                "GPTForCausalLM checkpoint; TensorRT-LLM 1.2.1 puts Medusa on Llama",
            ),
            ({"architecture": "Qwen2ForCausalLM", "qwen_type": "qwen2_moe"}, "qwen_type 'qwen2_moe'"),
        ]
    ):
        target = targets.engine_checkpoint(tmp_path / f"t{number}", **changes)
        with pytest.raises(ConversionError, match=message):
            convert_drafter("medusa", source, target, tmp_path / "no")
        assert not (tmp_path / "no").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source, _, _ = heads(tmp_path / "heads")
    large, _, weights = heads(tmp_path / "large")
    weights["0.1.weight"] = np.full_like(weights["0.1.weight"], 1e6)
    released.write(large, released.medusa()[0], weights, FILE)
    tiny = targets.engine_checkpoint(tmp_path / "tiny", hidden_size=8)
    more = targets.engine_checkpoint(tmp_path / "more", vocabulary=64)
    plain = targets.engine_checkpoint(tmp_path / "plain")
    half = targets.engine_checkpoint(tmp_path / "half", dtype="float16")
    odd = targets.engine_checkpoint(tmp_path / "odd", tp_size=3)
    llama = targets.huggingface(tmp_path / "llama", vocabulary=52)
    cases: list[tuple[Path, Path, dict[str, Any], str]] = [
        (
            source,
            tiny,
            {},
            "trained for a target of width 16; .*tiny has hidden_size 8: it is another target",
        ),
        (source, more, {}, "has a vocabulary of 48; .* has vocab_size 64"),
        (source, llama, {"layout": "source"}, "48 is what the tokenizer has without its added tokens"),
        (source, llama.parent / "none", {}, r"config\.json is missing"),
        (tmp_path / "nothing", plain, {}, r"config\.json is missing"),
        (source, odd, {}, r"0\.0\.linear\.weight: 16 is not divisible by the tensor-parallel size 3"),
        (source, plain, {"tp_size": 2}, "tensor-parallel size 2 was asked for, but .* was made for 1"),
        (source, plain, {"dtype": "float16"}, "dtype float16 was asked for, but .* has float32"),
        (source, plain, {"dtype": "int4"}, "dtype 'int4' is none of float32"),
        (source, plain, {"num_heads": 9}, "9 heads were asked for; there are 3"),
        (source, plain, {"max_draft_length": 2}, "below the number of heads, 3"),
        (source, plain, {"beams": 3}, "medusa has no setting 'beams'; it has layout, dtype"),
        (large, half, {}, r"0\.1\.weight holds values that do not fit float16"),
    ]
    for drafter, target, choices, message in cases:
        with pytest.raises(ConversionError, match=message):
            convert_drafter("medusa", drafter, target, tmp_path / "out", **choices)
        assert not (tmp_path / "out").exists(), message
    whole = targets.huggingface(tmp_path / "whole")
    with pytest.raises(ConversionError, match=r"is in Hugging Face layout.*convert_checkpoint\.py"):
        convert_drafter("medusa", source, whole, tmp_path / "out")


def test_a_checkpoint_without_medusa_or_with_a_missing_tensor_gives_no_heads(tmp_path: Path) -> None:
    plain = targets.engine_checkpoint(tmp_path / "plain")
    with pytest.raises(ConversionError, match="is a LlamaForCausalLM checkpoint, not MedusaForCausalLM"):
        restore_drafter("medusa", plain, tmp_path / "out")
    claimed = targets.engine_checkpoint(
        tmp_path / "claimed", architecture="MedusaForCausalLM", num_medusa_heads=1, num_medusa_layers=1
    )
    with pytest.raises(
        ConversionError, match=r"medusa_heads\.0\.medusa_layers\.0\.linear\.weight is missing"
    ):
        restore_drafter("medusa", claimed, tmp_path / "out")
    assert not (tmp_path / "out").exists()
