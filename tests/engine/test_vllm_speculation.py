"""What vLLM is told about each method, and what it is never told because it would not do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from deployments.findings import UnsupportedDeployment
from deployments.speculation import AnySpeculation
from engine.vllm.speculation import engine_settings, speculation_findings, speculative_config

SECTION: TypeAdapter[AnySpeculation] = TypeAdapter(AnySpeculation)


def told(max_batch_size: int = 8, **section: Any) -> dict[str, Any] | None:
    return speculative_config(SECTION.validate_python(section), max_batch_size)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"method": "none"}, None),
        (
            {"method": "prompt_lookup", "ngram": 4, "draft_length": 6},
            {"method": "ngram", "num_speculative_tokens": 6, "prompt_lookup_max": 4, "prompt_lookup_min": 1},
        ),
        (
            {"method": "suffix_automaton", "ngram": 10, "draft_length": 6},
            {
                "method": "suffix",
                "num_speculative_tokens": 6,
                "suffix_decoding_max_tree_depth": 16,
                "suffix_decoding_max_cached_requests": 0,
            },
        ),
        (
            {"method": "suffix_automaton", "global_pool": True, "global_pool_size": 50},
            {"method": "suffix", "num_speculative_tokens": 5, "suffix_decoding_max_cached_requests": 50},
        ),
        (
            {"method": "draft_model", "model": "d", "draft_length": 2, "use_draft_logits": True},
            {
                "method": "draft_model",
                "model": "d",
                "num_speculative_tokens": 2,
                "draft_sample_method": "probabilistic",
            },
        ),
        (
            {"method": "medusa", "checkpoint": "m", "num_heads": 2, "choices": [[0], [0, 0]]},
            {"method": "medusa", "model": "m", "num_speculative_tokens": 2},
        ),
        (
            {"method": "eagle", "checkpoint": "e", "depth": 3},
            {"method": "eagle", "model": "e", "num_speculative_tokens": 3},
        ),
        (
            {"method": "eagle3", "checkpoint": "e", "draft_length": 4},
            {"method": "eagle3", "model": "e", "num_speculative_tokens": 4},
        ),
        (
            {"method": "peagle", "checkpoint": "e", "draft_length": 6},
            {"method": "eagle3", "model": "e", "num_speculative_tokens": 6, "parallel_drafting": True},
        ),
        ({"method": "mtp", "draft_length": 1}, {"method": "mtp", "num_speculative_tokens": 1}),
        (
            {"method": "pard", "model": "p", "draft_length": 4},
            {"method": "draft_model", "model": "p", "num_speculative_tokens": 4, "parallel_drafting": True},
        ),
        (
            {"method": "dflash", "model": "f", "draft_length": 8},
            {"method": "dflash", "model": "f", "num_speculative_tokens": 8},
        ),
    ],
)
def test_methods_have_vllms_names(section: dict[str, Any], expected: dict[str, Any] | None) -> None:
    assert told(**section) == expected


def test_anpd_is_the_kits_own_table_with_its_own_settings() -> None:
    section = SECTION.validate_python({"method": "anpd", "ngram": 4, "draft_length": 6})
    assert engine_settings(section, 8) == {
        "speculative_config": {
            "method": "custom_class",
            "model": "drafthouse.engine.vllm.proposer.AnpdProposer",
            "num_speculative_tokens": 6,
        },
        "additional_config": {"drafthouse": {"ngram": 4}},
    }


@pytest.mark.parametrize(("drafted", "tracked"), [(200, False), (512, True), (None, True)])
def test_heads_with_a_draft_vocabulary_load_without_the_check_that_misses_it(
    drafted: int | None, tracked: bool, tmp_path: Path
) -> None:
    config = {"medusa_num_heads": 2, "vocab_size": 512, "truncated_vocab_size": drafted}
    content = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(content))
    section = SECTION.validate_python({"method": "medusa", "checkpoint": tmp_path, "num_heads": 2})
    found = engine_settings(section, 8).get("model_loader_extra_config")
    assert found == (None if tracked else {"enable_weights_track": False})


@pytest.mark.parametrize(
    "content",
    [b"[]", b"7", b"{", b"[" * 100_000, b'{"vocab_size": null}', b"\xff"],
    ids=["list", "number", "cut", "nested", "null", "no text"],
)
def test_heads_with_a_damaged_config_are_left_to_whoever_reads_them(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    section = SECTION.validate_python({"method": "medusa", "checkpoint": tmp_path, "num_heads": 2})
    assert "model_loader_extra_config" not in engine_settings(section, 8)


@pytest.mark.parametrize(
    ("policy", "ranges"),
    [
        ({"max_concurrency": 3}, [[1, 3, 5], [4, 8, 0]]),
        ({"max_concurrency": 8}, [[1, 8, 5]]),
        ({"draft_length_schedule": {2: 5, 4: 3, 6: 1}}, [[1, 2, 5], [3, 4, 3], [5, 6, 1], [7, 8, 0]]),
        ({"draft_length_schedule": {100: 5}}, [[1, 8, 5]]),
    ],
)
def test_lengths_by_batch_size_say_what_becomes_of_every_batch(
    policy: dict[str, Any], ranges: list[list[int]]
) -> None:
    found = told(method="eagle3", checkpoint="e", draft_length=5, **policy)
    assert found is not None and found["num_speculative_tokens_per_batch_size"] == ranges


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        (
            {"method": "mlp_speculator", "checkpoint": "m", "candidates": 2},
            r"mlp_speculator\.candidates.*chains only",
        ),
        ({"method": "redrafter", "checkpoint": "r"}, "recurrent heads"),
        ({"method": "lookahead"}, "Jacobi window"),
        ({"method": "windowed"}, "draft for itself"),
        ({"method": "low_bit"}, "in four bits"),
        ({"method": "medusa", "checkpoint": "m", "choices": [[0], [1]]}, r"medusa\.choices.*chains only"),
        ({"method": "medusa", "checkpoint": "m", "max_concurrency": 2}, "all heads"),
        ({"method": "eagle", "checkpoint": "e", "choices": [[0], [1]]}, r"eagle\.choices"),
        ({"method": "eagle3", "checkpoint": "e", "dynamic_tree": {}}, r"eagle3\.dynamic_tree"),
        ({"method": "eagle3", "checkpoint": "e", "layers_to_capture": [1, 2, 3]}, r"config\.json"),
        ({"method": "eagle3", "checkpoint": "e", "suffix_automaton": {}}, "no lookup beside"),
        ({"method": "peagle", "checkpoint": "e", "suffix_automaton": {}}, "no lookup beside"),
        (
            {"method": "medusa", "checkpoint": "m", "suffix_automaton": {"chain_length": 9}},
            "no lookup beside",
        ),
        ({"method": "draft_model", "model": "d", "suffix_automaton": {}}, "no lookup beside"),
        ({"method": "mlp_speculator", "checkpoint": "m", "suffix_automaton": {}}, "no lookup beside"),
        ({"method": "prompt_lookup", "use_oldest": False}, "use_oldest: true"),
        ({"method": "pard", "model": "p", "mask_token_id": 3}, "pard_token"),
        ({"method": "suffix_automaton", "texts": "t.jsonl"}, "empty pool"),
        ({"method": "anpd", "drafted_by": "bls"}, "drafted_by: engine"),
        ({"method": "anpd", "acceptance_gate": {"window": 9, "min_rate": 0.2}}, "never gives speculation up"),
        ({"method": "anpd", "draft_policy": "measured"}, "does not weigh drafts against their time"),
    ],
)
def test_what_the_release_does_not_do_is_refused_with_what_comes_nearest(
    section: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedDeployment, match=r"vLLM 0\.32\.0 .*") as refusal:
        told(**section)
    assert refusal.match(reason) and all(finding.remedy for finding in refusal.value.findings)


def test_all_that_vllm_lacks_of_a_section_is_told() -> None:
    section = {"method": "eagle3", "checkpoint": "e", "dynamic_tree": {}, "layers_to_capture": [1, 2, 3]}
    assert len(list(speculation_findings(SECTION.validate_python(section)))) == 2
    with pytest.raises(UnsupportedDeployment, match=r"(?s)dynamic_tree.*layers_to_capture"):
        told(**section)
