"""Drafters in the format of the speculators library: what vLLM would not read as it was meant is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.vllm.speculators_format import format_findings, release_findings

# As the library writes it (src/speculators/models/eagle3/config.py, SpeculatorModelConfig).
WRITTEN: dict[str, Any] = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "speculators_version": "0.5.0",
    "speculators_config": {
        "algorithm": "eagle3",
        "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
        "verifier": {
            "name_or_path": "meta-llama/Llama-3.1-8B-Instruct",
            "architectures": ["LlamaForCausalLM"],
        },
    },
    "transformer_layer_config": {"model_type": "llama", "hidden_size": 4096},
    "draft_vocab_size": 32000,
    "norm_before_residual": True,
}


def written(folder: Path, **changes: Any) -> Path:
    content = {key: value for key, value in (WRITTEN | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_what_the_library_writes_is_taken(tmp_path: Path) -> None:
    assert not list(format_findings(written(tmp_path), "eagle3"))
    for kind in ("peagle", "dflash"):
        assert not list(format_findings(written(tmp_path, speculators_model_type=kind), kind))


@pytest.mark.parametrize(
    ("changes", "method", "reason", "remedy"),
    [
        ({"speculators_model_type": "dflash"}, "eagle3", "of the kind 'dflash'", "method: dflash"),
        ({"speculators_model_type": "peagle"}, "eagle3", "of the kind 'peagle'", "method: peagle"),
        ({"speculators_model_type": "mtp"}, "eagle3", "of the kind 'mtp'", "is eagle3"),
        ({}, "peagle", "of the kind 'eagle3'", "method: eagle3"),
        (
            {"speculators_model_type": "peagle", "norm_before_residual": ...},
            "peagle",
            "nothing of norm_before_residual",
            "as the drafter was trained",
        ),
        ({"speculators_model_type": ["x"]}, "eagle3", "of the kind", "is eagle3"),
        ({}, "eagle", "of the kind 'eagle3'", "method: eagle3"),
        ({"transformer_layer_config": ...}, "eagle3", "no transformer_layer_config", "again"),
        ({"transformer_layer_config": 3}, "eagle3", "no transformer_layer_config", "again"),
        ({"speculators_config": ...}, "eagle3", "no speculators_config", "again"),
        ({"transformer_layer_config": {"model_type": "gpt_oss"}}, "eagle3", "'gpt_oss'", "one of these"),
        (
            {"norm_before_residual": ...},
            "eagle3",
            "nothing of norm_before_residual",
            "as the drafter was trained",
        ),
    ],
)
def test_what_vllm_would_read_otherwise_is_refused(
    changes: dict[str, Any], method: str, reason: str, remedy: str, tmp_path: Path
) -> None:
    (finding,) = format_findings(written(tmp_path, **changes), method)
    assert reason in finding.reason and remedy in finding.remedy and finding.severity == "error"


def test_other_layouts_and_what_is_not_here_are_none_of_its_business(tmp_path: Path) -> None:
    assert not list(format_findings(tmp_path, "eagle3"))
    (tmp_path / "config.json").write_text("{")
    assert not list(format_findings(tmp_path, "eagle3"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not list(format_findings(tmp_path, "eagle3"))
    assert not list(release_findings(tmp_path, "eagle3", lambda key: False))


@pytest.mark.parametrize("key", ["fc_norm", "norm_output"])
def test_a_switch_that_the_installed_release_passes_over_is_refused(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, **{key: True})
    assert not list(release_findings(path, "eagle3", lambda key: True))
    (finding,) = release_findings(path, "eagle3", lambda name: name != key)
    assert key in finding.reason
    assert not list(release_findings(written(tmp_path, **{key: False}), "eagle3", lambda key: False))
