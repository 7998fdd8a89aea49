"""Who drafts on the embedded engine: what is refused before building, and what the repository then says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.embedded_checks import embedded_findings
from build.repository import assemble_repository
from build.targets.errors import TargetError
from deployments.spec import DeploymentSpec
from engine.serving.bls_settings import BlsSettings

DRAFT = {"method": "draft_model", "model": "models/small", "draft_length": 4}
ANPD = {"method": "anpd"}


def spec_of(speculation: dict[str, Any], **engine: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {"name": "x", "target": {"model": "models/big"}, "speculation": speculation, "engine": engine}
    )


def parameters(directory: Path, spec: DeploymentSpec) -> dict[str, dict[str, str]]:
    """The parameters of all models of the spec's repository."""
    repository = assemble_repository(spec, directory / "engines" / "big-int8", directory / "repository")
    found = {}
    for path in repository.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        assert config.name == path.parent.name
        assert (path.parent / "1" / "model.py").is_file() == (config.platform != "ensemble")
        found[config.name] = {name: value.string_value for name, value in config.parameters.items()}
    return found


def test_a_draft_model_that_the_bls_calls_is_a_model_of_its_own(tmp_path: Path) -> None:
    spec = spec_of({**DRAFT, "drafted_by": "bls", "precision": "fp32"}, max_sequence_length=512)
    found = parameters(tmp_path, spec)
    settings = BlsSettings.read(found["tensorrt_llm_bls"])
    assert (settings.draft_model, settings.num_draft_tokens) == ("tensorrt_llm_draft", 4)
    assert settings.max_sequence_length == 512
    draft = found["tensorrt_llm_draft"]
    assert draft["gpt_model_path"] == str(tmp_path / "engines" / spec.speculator_directory.name)
    assert draft["role"] == "draft"
    deployment = DeploymentSpec.model_validate_json(draft["deployment"])
    assert (deployment.embedded.precision, deployment.speculation.method) == ("fp32", "none")
    assert deployment.embedded.max_sequence_length == 512
    assert "role" not in found["tensorrt_llm"]


@pytest.mark.parametrize("speculation", [{"method": "none"}, {"method": "anpd"}, DRAFT])
def test_where_the_engine_drafts_the_bls_does_not(speculation: dict[str, Any], tmp_path: Path) -> None:
    found = parameters(tmp_path, spec_of(speculation))
    assert "tensorrt_llm_draft" not in found
    settings = BlsSettings.read(found["tensorrt_llm_bls"])
    assert (settings.draft_model, settings.drafter, settings.num_draft_tokens) == ("", "", 0)


def test_ngrams_in_the_bls_have_the_settings_of_the_spec(tmp_path: Path) -> None:
    spec = spec_of({"method": "anpd", "ngram": 3, "draft_length": 6, "drafted_by": "bls"})
    settings = BlsSettings.read(parameters(tmp_path, spec)["tensorrt_llm_bls"])
    assert (settings.drafter, settings.num_draft_tokens) == ("anpd", 6)
    assert settings.drafter_settings == {"ngram": 3, "draft_length": 6}
    assert list(embedded_findings(spec)) == []


@pytest.mark.parametrize(
    ("speculation", "engine", "name", "what"),
    [
        (
            {"method": "medusa", "checkpoint": "heads", "drafted_by": "bls"},
            {},
            "method-without-speculator",
            "medusa cannot be drafted by tensorrt_llm_bls",
        ),
        (
            {"method": "anpd", "drafted_by": "bls"},
            {"kv_cache_reuse": False},
            "draft-without-reuse",
            "would compute the whole context anew",
        ),
        (
            {"method": "anpd", "drafted_by": "bls", "max_concurrency": 4},
            {},
            "setting-without-effect",
            "speculation.max_concurrency has no effect with drafted_by: bls",
        ),
        (
            {"method": "anpd", "drafted_by": "engine", "acceptance_gate": {"window": 3, "min_length": 1.0}},
            {},
            "setting-without-effect",
            "speculation.acceptance_gate has no effect on the embedded engine",
        ),
        (
            {"method": "eagle3", "checkpoint": "eagle", "suffix_automaton": {"global_pool": True}},
            {},
            "setting-without-effect",
            "speculation.suffix_automaton.global_pool has no effect on the embedded engine",
        ),
        (
            {"method": "suffix_automaton", "global_pool": True},
            {"kv_cache_sharing": "salted"},
            "pool-without-tenants",
            "speculation.global_pool lets what others were answered shape a request's timing",
        ),
        (
            {"method": "suffix_automaton", "drafted_by": "bls", "texts": "t.jsonl"},
            {},
            "setting-without-effect",
            "speculation.texts has no effect with drafted_by: bls",
        ),
        (
            {
                "method": "draft_model",
                "model": "d",
                "drafted_by": "bls",
                "suffix_automaton": {"chain_length": 9},
            },
            {},
            "setting-without-effect",
            "speculation.suffix_automaton has no effect with drafted_by: bls",
        ),
        (
            {"method": "windowed", "window": 512},
            {"max_sequence_length": 1024},
            "never-drafts",
            "contexts of 1024 tokens and more, but requests end at engine.max_sequence_length: 1024",
        ),
        (
            {"method": "windowed", "choice": "verified"},
            {"attention_kernel": "openvino"},
            "choice-without-weights",
            "only the kit's own attention kernel tells, but engine.attention_kernel is openvino",
        ),
        (
            {"method": "windowed", "choice": "snapkv"},
            {"backend": "torch"},
            "choice-without-weights",
            "only the kit's own attention kernel tells, but engine.backend is torch",
        ),
        (
            {"method": "anpd", "draft_policy": "measured"},
            {"backend": "torch"},
            "policy-without-costs",
            "times steps when the engine starts, which says nothing on engine.backend: torch",
        ),
        (
            {"method": "anpd", "draft_policy": "measured", "drafted_by": "bls"},
            {},
            "setting-without-effect",
            "speculation.draft_policy has no effect with drafted_by: bls",
        ),
        (
            {"method": "low_bit"},
            {"precision": "fp32", "backend": "torch"},
            "copy-without-cache",
            "on the target's own KV cache, which engine.backend: torch does not share",
        ),
        (
            {"method": "low_bit"},
            {"precision": "int4"},
            "copy-without-gain",
            "four-bit weights, which a target of engine.precision: int4 has itself",
        ),
        (
            {"method": "low_bit"},
            {"precision": "int8", "attention_kernel": "openvino"},
            "copy-without-gain",
            "as slowly as the target decodes: four-bit weights are unpacked to eight bits where the kit's kernel does "
            "not run, and engine.attention_kernel is openvino",
        ),
        (
            {"method": "low_bit", "bits_per_weight": 8.05},
            {"precision": "int8"},
            "copy-without-gain",
            "bits_per_weight: 8.05 drafts with what a target of engine.precision: int8 is itself",
        ),
        (
            {"method": "low_bit", "bits_per_weight": 7.9},
            {"precision": "fp32", "attention_kernel": "openvino"},
            "copy-in-eight-bits",
            "and engine.attention_kernel is openvino",
        ),
    ],
)
def test_what_cannot_be_is_found_before_building(
    speculation: dict[str, Any], engine: dict[str, Any], name: str, what: str
) -> None:
    (finding,) = embedded_findings(spec_of(speculation, **engine))
    assert finding.name == name
    assert what in finding.reason
    assert finding.remedy


def test_a_copy_in_eight_bits_of_a_target_in_fp32_needs_no_kernel() -> None:
    speculation = {"method": "low_bit", "bits_per_weight": 8.0}
    assert not list(embedded_findings(spec_of(speculation, precision="fp32", attention_kernel="openvino")))


def test_a_directory_that_is_no_repository_is_not_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    (precious / "ensemble").mkdir(parents=True)
    (precious / "ensemble" / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetError, match=r"precious holds files and no drafthouse\.json"):
        assemble_repository(spec_of(ANPD), tmp_path / "engine", precious)
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "ensemble", "thesis.txt"]


def test_the_same_repository_is_left_to_the_server_that_reads_it(tmp_path: Path) -> None:
    repository = assemble_repository(spec_of(ANPD), tmp_path / "engine", tmp_path / "repository")
    before = repository.stat().st_ino
    assemble_repository(spec_of(ANPD), tmp_path / "engine", repository)
    assert repository.stat().st_ino == before
    assemble_repository(spec_of(ANPD, max_batch_size=3), tmp_path / "engine", repository)
    assert repository.stat().st_ino != before
