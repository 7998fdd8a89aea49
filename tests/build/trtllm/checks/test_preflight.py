"""Pre-flight as a whole: what it says at which stage, and that it says something about any spec."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import event, given, settings
from pydantic import ValidationError

from build.plan.run import script
from build.plan.runners import LocalRunner
from build.trtllm.checks.preflight import Preflight, Stage, preflight
from build.trtllm.plan import plan_steps
from build.trtllm.repository.assemble import trtllm_models
from tests.build.trtllm.checkpoints import checkpoint
from tests.build.trtllm.specs import SPECULATION, deployment
from tests.build.trtllm.support.test_random_specs import sections


def severities(result: Preflight) -> dict[str, str]:
    return {finding.name: finding.severity for finding in result.findings}


@pytest.mark.parametrize("method", sorted(SPECULATION))
@pytest.mark.parametrize(("line", "runtime"), [("A", "engines"), ("A", "llm_api"), ("B", "llm_api")])
def test_every_place_of_the_matrix_passes_or_is_refused_with_the_nearest_that_works(
    method: str, line: str, runtime: str
) -> None:
    result = preflight(deployment(method, line, runtime), "print")
    if result.resolved is None:
        (refusal,) = result.findings
        assert refusal.name == "not-in-this-line" and refusal.reason and refusal.remedy
    else:
        assert result.findings == () and not result.failed


def test_a_sound_deployment_has_its_arithmetic_as_only_finding(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "target")
    draft = checkpoint(tmp_path / "draft", num_hidden_layers=1)
    spec = deployment("draft_model", model=target, speculation={"model": draft}, gpu_memory_gib=24)
    assert severities(preflight(spec)) == {"gpu-memory": "note"}


def test_the_worst_comes_first(tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "target", max_position_embeddings=4096)
    draft = checkpoint(tmp_path / "draft", max_position_embeddings=2048)
    spec = deployment("draft_model", model=target, speculation={"model": draft}, gpu_memory_gib=24)
    result = preflight(spec)
    assert [finding.severity for finding in result.findings] == ["error", "warning", "note"]
    assert result.failed


@pytest.mark.parametrize(("stage", "severity"), [("build", "warning"), ("serve", "error")])
def test_a_wrong_engine_is_replaced_by_the_build_and_not_served(
    stage: Stage, severity: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = checkpoint(tmp_path / "target")
    engine = Path("runs/trtllm/example/target-engine")
    engine.mkdir(parents=True)
    build = {"build_config": {"speculative_decoding_mode": 2, "max_draft_len": 0}}
    (engine / "config.json").write_text(json.dumps(build))
    result = preflight(deployment("anpd", model=target, gpu_memory_gib=24), stage)
    assert severities(result)["target-without-draft-length"] == severity
    assert result.failed == (stage == "serve")


@pytest.mark.parametrize(
    ("method", "line", "engine", "name"),
    [
        (
            *("eagle3", "A", {"llm_args": {"speculative_config": {"decoding_type": "Eagle3"}}}),
            "wrong-spelling-for-the-line",
        ),
        ("eagle3", "B", {"llm_args": {"speculative_config": {"eagle3_one_model": False}}}, "key-of-another-line"),
        ("none", "B", {"llm_args": {"kv_cache_konfig": {}}}, "spec"),
        ("draft_model", "A", {"build_flags": {"max_draft_len": "0"}}, "not-in-this-line"),
        ("lookahead", "A", {"build_flags": {"paged_kv_cache": "enable"}}, "not-in-this-line"),
        ("draft_model", "A", {"triton_parameters": {"tensorrt_llm": {"gpu_device_ids": r"0\,1"}}}, "template-value"),
        ("medusa", "A", {"triton_parameters": {"tensorrt_llm": {"medusa_choices": "[[0], [0, 0]]"}}}, "template-value"),
        ("none", "A", {"triton_parameters": {"tensorrt_llm": {"gpt_model_type": "${b}"}}}, "template-value"),
    ],
)  # fmt: skip
def test_free_form_keys_are_checked_before_anything_is_built(
    method: str, line: str, engine: dict[str, Any], name: str
) -> None:
    found = severities(preflight(deployment(method, line, **engine), "print"))
    assert found[name] == "error"


def test_asking_the_container_without_docker_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (found,) = preflight(deployment("none", "auto"), "print").findings
    assert found.severity == "error" and "needs Docker; write line: A or line: B" in found.reason


@given(sections())
@settings(max_examples=150, deadline=None)
def test_what_passes_has_a_plan_and_a_repository(drawn: Any) -> None:
    """And what does not pass is told with a reason, whatever the spec says."""
    method, line, runtime, speculation, engine = drawn
    try:
        spec = deployment(method, line, runtime, speculation, **engine)
    except ValidationError:
        return
    result = preflight(spec, "print")
    event("failed" if result.failed else "passed")
    assert all(
        finding.reason and (finding.remedy or finding.severity == "note") for finding in result.findings
    )
    if result.failed or result.resolved is None:
        return
    printed = script(plan_steps(result.resolved, Path("spec.yaml")), LocalRunner())
    assert all(shlex.split(line) for line in printed.splitlines() if line and not line.startswith("#"))
    assert trtllm_models(result.resolved)


@pytest.mark.parametrize(
    ("method", "line", "engine", "parts"),
    [
        (
            *("eagle", "A"),
            {
                "quantization": "fp8",
                "build_flags": {"max_seqlen": "9"},
                "triton_parameters": {"tensorrt_llm": {"batch_scheduler": "x"}, "ensembel": {"x": "1"}},
            },
            (
                *("EAGLE engines take a quantised target", "has no --max_seqlen"),
                *("no eagle heads on model type qwen2", "batch_scheduler: unknown", "no such model"),
            ),
        ),
        (
            *("eagle3", "B"),
            {
                "quantization": "fp8",
                "llm_args": {"max_batch_size": 3, "kv_cache_konfig": {}},
                "triton_parameters": {"tensorrt_llm": {"gpu_device_ids": "x"}},
            },
            (
                *("takes a checkpoint as it is", "max_batch_size: the kit sets it"),
                *("kv_cache_konfig: unknown key", "gpu_device_ids is 'x'"),
            ),
        ),
    ],
)
def test_free_forms_are_told_beside_what_cannot_be_had(
    method: str, line: str, engine: dict[str, Any], parts: tuple[str, ...]
) -> None:
    found = preflight(deployment(method, line, model_type="qwen2", **engine), "print").findings
    assert len(found) == len(parts)
    for part in parts:
        assert any(part in finding.reason for finding in found), part


def test_what_follows_from_an_error_is_not_told_beside_it() -> None:
    gate = {"acceptance_gate": {"window": 100, "min_length": 1.5}}
    (found,) = preflight(
        deployment("eagle3", "B", None, gate, llm_args={"revision": "main"}), "print"
    ).findings
    assert "gates on min_rate" in found.reason
