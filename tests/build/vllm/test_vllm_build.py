"""What is written for vLLM, and what is refused before it is asked."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from safetensors.numpy import load_file, save_file
from tritonclient.grpc import model_config_pb2

from build.identity import identity
from build.targets.architecture import Architecture
from build.triton.llmapi import llmapi_tensors
from build.triton.module_files import module_files
from build.vllm.arguments import engine_arguments
from build.vllm.checks import asked_of_vllm, vllm_findings
from build.vllm.repository import assemble_vllm_repository
from deployments.findings import Finding
from deployments.spec import DeploymentSpec, SpecError, load_spec
from planner.bench.peers.environments import Environment
from speculators.draft_model.checkpoint import EMBEDDING, save_draft
from speculators.formats.tensors import read_tensors
from tests.build.targets.tiny_models import random_weights, tiny_config, write_huggingface
from tests.end_to_end.tiny_tokenizers import write_tokenizer
from tests.speculators import released

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
        assert (version / "drafthouse" / path).is_file(), "and what it imports itself"
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
        ({"method": "mlp_speculator", "checkpoint": "m", "candidates": 4}, {}, "not-in-vllm"),
        ({"method": "redrafter", "checkpoint": "r"}, {}, "not-in-vllm"),
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
    assert finding.remedy


def test_an_mlp_speculator_is_found_and_its_stages_are_counted(target: Path, tmp_path: Path) -> None:
    stages = released.write(tmp_path / "stages", *released.mlp_speculator(3))
    section = {"method": "mlp_speculator", "checkpoint": stages}
    spec = deployment(target, {**section, "draft_length": 3})
    assert not list(vllm_findings(spec))
    told = engine_arguments(spec, tmp_path)
    assert told["additional_config"] == {"drafthouse": {"checkpoint": str(stages)}}
    version = assemble_vllm_repository(spec) / "tensorrt_llm" / "1"
    module, name = told["speculative_config"]["model"].rsplit(".", 1)
    assert f"class {name}:" in (version / f"{module.replace('.', '/')}.py").read_text()
    (finding,) = vllm_findings(deployment(target, {**section, "draft_length": 4}))
    assert finding.name == "too-few-stages" and finding.remedy == "draft_length: 3 or fewer"
    (stages / "model.safetensors").unlink()
    (finding,) = vllm_findings(spec)
    assert finding.name == "checkpoint-unusable" and "model.safetensors" in finding.reason


def test_a_checkpoint_of_the_kits_own_drafter_is_found_from_where_the_server_looks(
    target: Path, tmp_path: Path
) -> None:
    released.write(tmp_path / "stages", *released.mlp_speculator(3))
    spec = deployment(target, {"method": "mlp_speculator", "checkpoint": "stages"})
    told = engine_arguments(spec, tmp_path)
    assert told["additional_config"] == {"drafthouse": {"checkpoint": str(tmp_path / "stages")}}


def test_heads_that_the_checkpoint_does_not_have_are_refused(target: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_text(json.dumps({"medusa_num_heads": 3}))
    section = {"method": "medusa", "checkpoint": heads}
    assert not list(vllm_findings(deployment(target, {**section, "num_heads": 3})))
    (finding,) = vllm_findings(deployment(target, {**section, "num_heads": 4}))
    assert finding.name == "too-few-heads"


def test_all_that_is_wrong_is_told_at_once(target: Path) -> None:
    section = {"method": "eagle3", "checkpoint": "e", "dynamic_tree": {}, "layers_to_capture": [1, 2, 3]}
    arguments = {"max_num_seqs": 3, "speculative_config": {}}
    names = [finding.name for finding in vllm_findings(deployment(target, section, arguments=arguments))]
    assert names == ["not-in-vllm", "not-in-vllm", "argument-set-twice", "argument-set-twice"]


@pytest.mark.parametrize(
    "content", [b"[]", b"{", b"[" * 100_000, b"\xff"], ids=["list", "cut", "nested", "no text"]
)
def test_heads_with_a_damaged_config_are_refused(content: bytes, target: Path, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    heads.mkdir()
    (heads / "config.json").write_bytes(content)
    (finding,) = vllm_findings(deployment(target, {"method": "medusa", "checkpoint": heads}))
    assert (finding.name, finding.severity) == ("checkpoint-unusable", "error")
    assert str(heads / "config.json") in finding.reason


def with_bare_draft(folder: Path) -> DeploymentSpec:
    """A deployment with a draft model that was kept without its embedding."""
    config = tiny_config("llama", head_dim=32)
    target = write_huggingface(folder / "target", config, random_weights(Architecture.from_config(config)))
    tensors = read_tensors(target / "model.safetensors", lambda name: name != EMBEDDING)
    (folder / "draft").mkdir()
    save_draft(config, tensors, np.arange(10, 200), folder / "draft")
    return deployment(target, {"method": "draft_model", "model": folder / "draft"})


def draft_of(spec: DeploymentSpec) -> Path:
    """The draft model that vLLM is told to load."""
    return Path(engine_arguments(spec, Path("/"))["speculative_config"]["model"])


def test_a_draft_is_completed_where_no_deployment_has_its_repository(tmp_path: Path) -> None:
    spec = with_bare_draft(tmp_path)
    names = {}
    for name in ("tiny", "tiny-draft"):
        serving = spec.serving.model_copy(update={"repository": tmp_path / "repositories" / name})
        each = spec.model_copy(update={"name": name, "serving": serving})
        names[name] = each, assemble_vllm_repository(each)
    for each, repository in names.values():
        assert (repository / "ensemble" / "config.pbtxt").is_file()
        assert EMBEDDING in load_file(draft_of(each) / "model.safetensors")
        with pytest.raises(ValueError, match="pattern"):
            DeploymentSpec.model_validate({**spec.model_dump(), "name": draft_of(each).name})


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_draft_of_another_family_is_given_as_it_is(weights: str, tmp_path: Path) -> None:
    """Its embedding may have any name, and its weights may be such that the kit does not read them."""
    spec = with_bare_draft(tmp_path)
    draft = tmp_path / "draft"
    shutil.rmtree(draft)
    draft.mkdir()
    (draft / "config.json").write_text('{"model_type": "gpt2"}')
    if weights == "model.safetensors":
        save_file({"transformer.wte.weight": np.zeros((4, 2), np.float32)}, draft / weights)
    else:
        (draft / weights).write_bytes(b"a pickle")
    assemble_vllm_repository(spec)
    assert draft_of(spec) == draft
    assert {path.name for path in draft.iterdir()} == {"config.json", weights}


_VLLM = """
import atexit, dataclasses, os
@dataclasses.dataclass
class AsyncEngineArgs:
    {fields}
    def create_engine_config(self):
        {does}
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Environment:
    """An environment whose Python finds a package `vllm`, which `_VLLM` makes."""
    program = tmp_path / "environment" / "bin" / "python"
    program.parent.mkdir(parents=True)
    package = tmp_path / "environment" / "vllm" / "engine"
    package.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={package.parents[1]} exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return Environment(tmp_path / "environment")


def asked(spec: DeploymentSpec, environment: Environment, does: str) -> list[Finding]:
    fields = "; ".join(f"{name}: object = None" for name in engine_arguments(spec, Path.cwd()))
    module = environment.directory / "vllm" / "engine" / "arg_utils.py"
    module.write_text(_VLLM.format(fields=fields, does=does))
    return list(asked_of_vllm(spec, environment))


def test_vllm_may_say_something_behind_its_answer(target: Path, stand_in: Environment) -> None:
    last_words = "atexit.register(print, '[rank0] left running')"
    assert not asked(deployment(target), stand_in, last_words)
    (finding,) = asked(deployment(target), stand_in, f"{last_words}; raise ValueError('no such model')")
    assert finding.name == "refused-by-vllm" and "ValueError: no such model" in finding.reason


def test_vllm_that_ends_without_an_answer_was_not_asked(target: Path, stand_in: Environment) -> None:
    (finding,) = asked(deployment(target), stand_in, "os._exit(0)")
    assert (finding.name, finding.severity) == ("vllm-not-asked", "warning")


def test_a_target_without_a_fast_tokenizer_is_refused(target: Path) -> None:
    (target / "tokenizer.json").unlink()
    (finding,) = vllm_findings(deployment(target))
    assert "tokenizer.json" in finding.reason


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
