"""What tells one deployment from another, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.identity import identity
from build.repository import assemble_repository
from build.trtllm.repository.assemble import trtllm_models
from build.trtllm.support.matrix import resolve
from deployments.spec import DeploymentSpec
from tests.build.trtllm.specs import deployment
from tests.tiny import TinyTargets


def spec_of(**changes: Any) -> DeploymentSpec:
    content = {"name": "mine", "target": {"model": "models/tiny"}, "speculation": {"method": "anpd"}}
    return DeploymentSpec.model_validate({**content, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"serving": {"http_port": 9000, "host": "0.0.0.0"}},
        {"loadtest": {"rounds": 7}},
        {"engine": {"precision": "int8"}},  # what it is anyway
    ],
)
def test_where_it_listens_and_how_it_is_measured_do_not_count(changes: dict[str, Any]) -> None:
    assert identity(spec_of(**changes)) == identity(spec_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"target": {"model": "models/other"}},
        {"engine": {"precision": "fp32"}},
        {"engine": {"max_batch_size": 4}},
        {"speculation": {"method": "anpd", "draft_length": 3}},
        {"speculation": {"method": "none"}},
    ],
)
def test_what_changes_the_service_changes_the_hash(changes: dict[str, Any]) -> None:
    assert identity(spec_of(**changes)).spec != identity(spec_of()).spec


def test_weights_are_those_that_were_compiled(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    spec = spec_of()
    assert identity(spec, tmp_path / "nothing").weights is None
    one, other = (tiny_targets.engine(variant, "int8") for variant in ("llama", "llama tied"))
    assert identity(spec, one).weights == identity(spec, tiny_targets.engine("llama", "fp32")).weights
    assert identity(spec, one).weights != identity(spec, other).weights


def test_weights_that_are_here_in_part_are_not_compared(tiny_targets: TinyTargets, tmp_path: Path) -> None:
    """Whoever has the target alone cannot say what a server that drafts with weights has."""
    drafts = spec_of(speculation={"method": "medusa", "checkpoint": "heads"})
    engine = shutil.copytree(tiny_targets.engine("llama", "int8"), tmp_path / "engine")
    assert identity(drafts, engine).weights is None and identity(spec_of(), engine).weights is not None
    heads = tmp_path / drafts.speculator_directory.name
    heads.mkdir()
    (heads / "speculator.json").write_text('{"source_sha256": "one"}')
    one = identity(drafts, engine).weights
    (heads / "speculator.json").write_text('{"source_sha256": "two"}')
    assert one is not None and identity(drafts, engine).weights not in (one, None)
    (heads / "speculator.json").write_text("{")
    assert identity(drafts, engine).weights is None


@pytest.mark.parametrize("reuse", [True, False])
def test_the_embedded_repository_says_it(tiny_targets: TinyTargets, tmp_path: Path, reuse: bool) -> None:
    engine = tiny_targets.engine("llama", "int8")
    spec = spec_of(engine={"kv_cache_reuse": reuse})
    repository = assemble_repository(spec, engine, tmp_path / "repository")
    for model in ("ensemble", "tensorrt_llm_bls"):
        text = (repository / model / "config.pbtxt").read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        expected = identity(spec, engine)
        assert config.parameters["drafthouse_deployment"].string_value == "mine"
        assert config.parameters["drafthouse_spec"].string_value == expected.spec
        assert config.parameters["drafthouse_weights"].string_value == expected.weights
        assert config.parameters["drafthouse_prefix_cache"].string_value == str(reuse).lower()


@pytest.mark.parametrize(("runtime", "reuse"), [("engines", True), ("engines", False), ("llm_api", False)])
def test_repositories_for_tensorrt_llm_say_it(runtime: str, reuse: bool) -> None:
    resolved = resolve(deployment("none", "A", runtime, kv_cache={"block_reuse": reuse}))
    models = {model.config.name: model.config for model in trtllm_models(resolved)}
    for name in ("ensemble", "tensorrt_llm_bls"):
        found = models[name].parameters
        assert found["drafthouse_deployment"].string_value == resolved.spec.name
        assert found["drafthouse_spec"].string_value == identity(resolved.spec).spec
        assert found["drafthouse_prefix_cache"].string_value == str(reuse).lower()
    salted = {name for name, config in models.items() if "cache_salt" in {item.name for item in config.input}}
    # NVIDIA's C++ backend has no input for it.
    assert salted == ({"ensemble", "tensorrt_llm_bls", "tensorrt_llm"} if runtime == "llm_api" else set())


def test_checkpoints_are_told_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = deployment("none", "A", "llm_api", model=Path("checkpoint"))
    assert identity(spec).weights is None
    (tmp_path / "checkpoint").mkdir()
    weights = tmp_path / "checkpoint" / "model.safetensors"
    content = bytearray(3_000_000)
    weights.write_bytes(content)
    before = identity(spec).weights
    weights.touch()
    assert identity(spec).weights == before
    content[-5] = 1
    weights.write_bytes(content)
    assert before != identity(spec).weights is not None
