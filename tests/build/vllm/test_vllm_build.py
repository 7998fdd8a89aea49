"""What is written for vLLM, and what is refused before it is asked."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.identity import identity
from build.trtllm.closure import module_files
from build.trtllm.repository import llmapi_tensors
from build.vllm.arguments import engine_arguments
from build.vllm.checks import vllm_findings
from build.vllm.repository import assemble_vllm_repository
from deployments.spec import DeploymentSpec, SpecError, load_spec
from tests.end_to_end.tiny_tokenizers import write_tokenizer

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "deployments").glob("*-vllm.yaml"))


def deployment(target: Path, speculation: dict[str, Any] | None = None, **engine: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {
            "name": "tiny",
            "target": {"model": target},
            "engine": {"kind": "vllm", **engine},
            "speculation": speculation or {"method": "none"},
            "serving": {"repository": target.parent / "repository"},
        }
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "target", "byte-level")


def test_every_setting_of_the_spec_reaches_the_engine(target: Path) -> None:
    spec = deployment(
        target,
        {"method": "prompt_lookup", "draft_length": 4, "max_concurrency": 2},
        dtype="bfloat16",
        quantization="fp8",
        tensor_parallel=2,
        pipeline_parallel=3,
        max_batch_size=4,
        max_sequence_length=100,
        max_num_tokens=50,
        memory_fraction=0.5,
        kv_cache_gib=2,
        kv_cache_reuse=False,
        enforce_eager=True,
        arguments={"seed": 7},
    )
    assert engine_arguments(spec, Path("/")) == {
        "model": str(target),
        "dtype": "bfloat16",
        "quantization": "fp8",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 3,
        "max_num_seqs": 4,
        "max_model_len": 100,
        "max_num_batched_tokens": 50,
        "gpu_memory_utilization": 0.5,
        "kv_cache_memory_bytes": 2 << 30,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "seed": 7,
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 4,
            "prompt_lookup_max": 3,
            "prompt_lookup_min": 1,
            "num_speculative_tokens_per_batch_size": [[1, 2, 4], [3, 4, 0]],
        },
    }


def test_the_repository_carries_what_its_models_import(target: Path) -> None:
    repository = assemble_vllm_repository(deployment(target, {"method": "anpd"}, max_batch_size=4))
    version = repository / "tensorrt_llm" / "1"
    written = yaml.safe_load((version / "model.yaml").read_text())
    assert written.pop("triton_config")["decoupled"] is True
    assert written["max_num_seqs"] == 4 and written["additional_config"] == {"drafthouse": {"ngram": 5}}
    module, name = written["speculative_config"]["model"].rsplit(".", 1)
    source = (version / f"{module.replace('.', '/')}.py").read_text()
    classes = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)}
    assert name in classes, "what vLLM is to import is there"
    for path in module_files("engine/vllm/proposer.py"):
        assert (version / path).is_file(), "and what it imports itself"
    (plugin,) = importlib.metadata.Distribution.discover(name="drafthouse-vllm", path=[str(version)])
    (entry,) = plugin.entry_points.select(group="vllm.general_plugins")
    assert (version / f"{entry.module.replace('.', '/')}.py").is_file()
    assert callable(getattr(importlib.import_module(entry.module), entry.attr))
    config = text_format.Parse(
        (repository / "tensorrt_llm" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()
    )
    assert {item.name for item in config.input} == {item["name"] for item in llmapi_tensors().inputs}
    assert config.model_transaction_policy.decoupled and config.backend == "python"
    names = {path.name for path in repository.iterdir() if path.is_dir()}
    assert names == {"ensemble", "tensorrt_llm", "tensorrt_llm_bls", "postprocessing"}


def test_the_text_models_say_which_deployment_it_is_and_take_a_salt(target: Path) -> None:
    spec = deployment(target, kv_cache_reuse=False)
    repository = assemble_vllm_repository(spec)
    for name in ("ensemble", "tensorrt_llm_bls"):
        text = (repository / name / "config.pbtxt").read_text()
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
        said = {key: value.string_value for key, value in config.parameters.items()}
        who = identity(spec).parameters(prefix_cache=False)
        assert {key: said[key] for key in who} == who
        assert "cache_salt" in {item.name for item in config.input}


@pytest.mark.parametrize("by_any", [False, True])
def test_ids_that_others_could_guess_stop_nothing_unless_the_spec_says_so(target: Path, by_any: bool) -> None:
    spec = deployment(target)
    serving = spec.serving.model_copy(update={"stop_by_id": by_any})
    repository = assemble_vllm_repository(spec.model_copy(update={"serving": serving}))
    written = yaml.safe_load((repository / "tensorrt_llm" / "1" / "model.yaml").read_text())
    assert written["triton_config"]["stop_by_id"] is by_any


@pytest.mark.parametrize(("method", "always"), [("anpd", "true"), ("none", "false")])
def test_the_door_knows_whether_a_request_can_do_without_drafts(
    target: Path, method: str, always: str
) -> None:
    repository = assemble_vllm_repository(deployment(target, {"method": method}))
    text = (repository / "tensorrt_llm_bls" / "config.pbtxt").read_text()
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.parameters["always_drafts"].string_value == always


@pytest.mark.parametrize("model", ["preprocessing", "tensorrt_llm"])
def test_parameters_that_no_model_would_read_are_refused(target: Path, model: str) -> None:
    spec = deployment(target, triton_parameters={model: {"x": "1"}})
    with pytest.raises(SpecError, match=rf"triton_parameters\.{model}: the repository has no such model"):
        assemble_vllm_repository(spec)


@pytest.mark.parametrize(
    ("speculation", "engine", "name"),
    [
        ({"method": "mlp_speculator", "checkpoint": "m"}, {}, "not-in-vllm"),
        ({"method": "draft_model", "model": "runs/Eagle3-like"}, {}, "taken-for-another-method"),
        ({"method": "eagle3", "checkpoint": "e"}, {"arguments": {"max_num_seqs": 3}}, "argument-set-twice"),
        ({"method": "none"}, {"arguments": {"speculative_config": {}}}, "argument-set-twice"),
    ],
)
def test_typical_mistakes_are_refused_with_what_would_be_right(
    target: Path, speculation: dict[str, Any], engine: dict[str, Any], name: str
) -> None:
    (finding,) = vllm_findings(deployment(target, speculation, **engine))
    assert (finding.name, finding.severity) == (name, "error")
    assert finding.right


def test_heads_that_the_checkpoint_does_not_have_are_refused(target: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text(json.dumps({"medusa_num_heads": 3}))
    section = {"method": "medusa", "checkpoint": heads}
    assert not list(vllm_findings(deployment(target, {**section, "num_heads": 3})))
    (finding,) = vllm_findings(deployment(target, {**section, "num_heads": 4}))
    assert finding.name == "too-few-heads"


def test_a_target_without_a_fast_tokenizer_is_refused(target: Path) -> None:
    (target / "tokenizer.json").unlink()
    (finding,) = vllm_findings(deployment(target))
    assert "tokenizer.json" in finding.what


def test_what_is_none_of_the_kits_is_not_replaced(target: Path) -> None:
    spec = deployment(target)
    (spec.serving.repository / "photos").mkdir(parents=True)
    (spec.serving.repository / "photos" / "1.jpg").touch()
    (finding,) = vllm_findings(spec)
    assert finding.name == "not-the-kit-s-own" and finding.severity == "error"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_nothing_speaks_against_an_example(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    spec = load_spec(path)
    assert not list(vllm_findings(spec))
    assert engine_arguments(spec, ROOT)["max_num_seqs"] == spec.vllm.max_batch_size


def test_a_section_of_another_engine_says_whose_it_is(target: Path) -> None:
    spec = deployment(target)
    with pytest.raises(SpecError, match=r"tiny is for vLLM \(engine\.kind\); this needs the embedded engine"):
        _ = spec.embedded
    with pytest.raises(SpecError, match="this needs TensorRT-LLM"):
        _ = spec.tensorrt_llm
