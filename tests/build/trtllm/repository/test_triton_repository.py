"""Triton repositories of every method: they parse, hold the whole contract, and can be set from the spec throughout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tritonclient.grpc import model_config_pb2

from build.triton.model_config import contract
from build.triton.module_files import outside_imports
from build.trtllm.methods.table import tree_of
from build.trtllm.methods.trees import as_braces
from build.trtllm.repository.assemble import assemble_trtllm_repository, trtllm_models
from build.trtllm.repository.engine_parameters import kv_shares
from build.trtllm.resolved import Supported
from build.trtllm.support.matrix import SUPPORT_MATRIX, resolve
from deployments.findings import UnsupportedDeployment
from deployments.spec import SpecError
from engine.serving.bls_settings import BlsSettings
from tests.build.trtllm.specs import deployment
from tests.build.trtllm.support.test_random_specs import sections

REFERENCE = Path(__file__).parents[5] / "shared" / "reference" / "trtllm_pbtxt_params.json"
EXISTING = [
    (line, runtime, method)
    for (line, runtime), row in SUPPORT_MATRIX.items()
    for method, entry in row.items()
    if isinstance(entry, Supported)
]
OF_ENGINES = {"ensemble", "preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls"}


def read(repository: Path) -> dict[str, Any]:
    """All configurations, parsed as Triton parses them."""
    found = {}
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        assert "${" not in text, path
        found[path.parent.name] = text_format.Parse(text, model_config_pb2.ModelConfig())
    return found


def configs(
    method: str = "none", line: str = "A", runtime: str | None = None, **others: Any
) -> dict[str, Any]:
    resolved = resolve(deployment(method, line, runtime, **others))
    return {model.config.name: model.config for model in trtllm_models(resolved)}


def parameters(config: Any) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def assert_holds(config: Any, inputs: list[Any], outputs: list[Any]) -> None:
    """Every tensor of the contract is there, with its type, shape and flags."""
    for field, described in (("input", inputs), ("output", outputs)):
        there = {tensor.name: tensor for tensor in getattr(config, field)}
        assert len(there) == len(getattr(config, field)), "a tensor is declared twice"
        for tensor in described:
            found = there[tensor["name"]]
            assert model_config_pb2.DataType.Name(found.data_type) == tensor["data_type"]
            assert list(found.dims) == tensor["dims"]
            assert found.HasField("reshape") == ("reshape" in tensor)
            if field == "input":
                assert found.optional == tensor.get("optional", False)
                assert found.allow_ragged_batch == tensor.get("allow_ragged_batch", False)


@pytest.mark.parametrize(("line", "runtime", "method"), EXISTING)
def test_every_cell_has_a_repository_with_the_whole_contract(
    tmp_path: Path, line: str, runtime: str, method: str
) -> None:
    resolved = resolve(deployment(method, line, runtime))
    found = read(assemble_trtllm_repository(resolved, tmp_path / "repository"))
    models = contract()["models"]
    draft = {"tensorrt_llm_draft"} if resolved.draft_engine else set()
    if runtime == "engines":
        assert set(found) == OF_ENGINES | draft
    else:
        assert set(found) == OF_ENGINES - {"preprocessing"}
    for name, config in found.items():
        assert config.name == name
        described = models[name.removesuffix("_draft")]
        if name == "tensorrt_llm" and runtime == "llm_api":
            described = contract()["llmapi"]["tensorrt_llm"]
        assert_holds(config, described["inputs"], described["outputs"])
        if config.backend:
            known = contract()["parameters"][name.removesuffix("_draft")]
            unknown = set(parameters(config)) - set(known)
            assert config.backend == "python" or not unknown, unknown
    for step in found["ensemble"].ensemble_scheduling.step:
        inner = found[step.model_name]
        assert set(step.input_map) <= {tensor.name for tensor in inner.input}
        assert set(step.output_map) <= {tensor.name for tensor in inner.output}


@pytest.mark.parametrize("method", [name for line, runtime, name in EXISTING if runtime == "engines"])
def test_the_backend_gets_nothing_but_nvidias_tensors(method: str) -> None:
    for name, config in configs(method, "A", "engines").items():
        if config.backend == "tensorrtllm":
            described = contract()["models"]["tensorrt_llm"]
            assert [tensor.name for tensor in config.input] == [item["name"] for item in described["inputs"]]
            assert [tensor.name for tensor in config.output] == [
                item["name"] for item in described["outputs"]
            ]
            assert config.model_transaction_policy.decoupled
            assert name.startswith("tensorrt_llm")


@pytest.mark.parametrize("method", ["medusa", "eagle", "redrafter", "lookahead"])
def test_decoding_modes(method: str) -> None:
    resolved = resolve(deployment(method, "A", "engines"))
    found = parameters(configs(method, "A", "engines")["tensorrt_llm"])
    assert found["decoding_mode"] == method
    tree = tree_of(resolved)
    choices = {name: value for name, value in found.items() if name.endswith("_choices")}
    assert choices == ({f"{method}_choices": as_braces(tree)} if tree else {})
    assert BlsSettings.read(parameters(configs(method)["tensorrt_llm_bls"])).decoding_mode == method
    lookahead = {name: value for name, value in found.items() if name.startswith("lookahead_")}
    assert len(lookahead) == (3 if method == "lookahead" else 0)
    assert set(lookahead.values()) <= {"7"}


@pytest.mark.parametrize("method", ["draft_model", "windowed", "anpd", "prompt_lookup"])
def test_drafts_from_outside_need_reuse_and_no_decoding_mode(method: str) -> None:
    found = configs(method, "A", "engines")
    for name in {"tensorrt_llm", "tensorrt_llm_draft"} & set(found):
        values = parameters(found[name])
        assert "decoding_mode" not in values
        assert values["enable_kv_cache_reuse"] == values["exclude_input_in_output"] == "true"
    settings = BlsSettings.read(parameters(found["tensorrt_llm_bls"]))
    assert settings.draft_model == ("tensorrt_llm_draft" if "tensorrt_llm_draft" in found else "")
    assert settings.drafter == ("" if settings.draft_model else method)
    assert settings.num_draft_tokens > 0 and not settings.embedded
    assert not settings.use_draft_logits and not settings.decoding_mode


def test_windowed_drafting_has_a_window() -> None:
    speculation = {"window": 256, "draft_length": 4}
    found = configs("windowed", "A", "engines", speculation=speculation)
    assert parameters(found["tensorrt_llm_draft"])["max_attention_window_size"] == "256"
    assert "max_attention_window_size" not in parameters(found["tensorrt_llm"])


def test_fast_logits_need_the_orchestrator_and_its_ranks() -> None:
    speculation = {"use_draft_logits": True}
    launch = {"mode": "orchestrator", "gpu_device_ids": [0, 1]}
    others = {"tensor_parallel": 2, "draft": {"tensor_parallel": 1, "gpu_device_ids": [2]}}
    found = configs("draft_model", "A", "engines", speculation=speculation, launch=launch, **others)
    target, draft = parameters(found["tensorrt_llm"]), parameters(found["tensorrt_llm_draft"])
    assert (target["participant_ids"], draft["participant_ids"]) == ("1,2", "3")
    assert (target["gpu_device_ids"], draft["gpu_device_ids"]) == ("0,1", "2")
    assert target["speculative_decoding_fast_logits"] == draft["speculative_decoding_fast_logits"] == "true"
    plain = configs("draft_model", "A", "engines", speculation=speculation)["tensorrt_llm"]
    assert not {"participant_ids", "speculative_decoding_fast_logits"} & set(parameters(plain))
    for given_launch, fast in ((launch, True), ({}, False)):
        bls = configs("draft_model", "A", "engines", speculation=speculation, launch=given_launch, **others)
        settings = BlsSettings.read(parameters(bls["tensorrt_llm_bls"]))
        assert settings.use_draft_logits and settings.fast_logits == fast


def test_guided_decoding_names_the_tokenizer_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve(deployment("none", "A", "engines", guided_decoding="xgrammar"))
    models = trtllm_models(resolved, tokenizer_info=Path("/srv/xgrammar.json"))
    values = parameters(next(model.config for model in models if model.config.name == "tensorrt_llm"))
    assert values["guided_decoding_backend"] == "xgrammar"
    assert values["xgrammar_tokenizer_info_path"] == "/srv/xgrammar.json"
    assert values["gpt_model_path"].startswith(f"{tmp_path}/runs/trtllm/example/")


def test_the_llm_api_reads_what_the_spec_says(tmp_path: Path) -> None:
    resolved = resolve(deployment("eagle3", "B", model=tmp_path))
    repository = assemble_trtllm_repository(resolved, tmp_path / "repository")
    content = yaml.safe_load((repository / "tensorrt_llm" / "1" / "model.yaml").read_text())
    assert content["triton_config"] == {
        "max_batch_size": 0,
        "decoupled": True,
        "cancellation_check_period_ms": 100,
    }
    assert content["speculative_config"]["decoding_type"] == "Eagle3"
    assert content["model"] == str(tmp_path)
    config = read(repository)["tensorrt_llm"]
    assert config.max_batch_size == 0
    instances = configs(line="B", triton_parameters={"tensorrt_llm": {"gpu_device_ids": "0,1;2,3"}})
    assert instances["tensorrt_llm"].instance_group[0].count == 2


def test_a_repository_is_replaced_as_a_whole(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    assemble_trtllm_repository(resolve(deployment("draft_model", "A", "engines")), repository)
    assemble_trtllm_repository(resolve(deployment("none", "A", "engines")), repository)
    assert not (repository / "tensorrt_llm_draft").exists()
    spoilt = deployment("none", "A", "engines", triton_parameters={"tensorrt_llm": {"nonsense": "1"}})
    with pytest.raises(SpecError):
        assemble_trtllm_repository(resolve(spoilt), repository)
    assert set(read(repository)) == OF_ENGINES
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize(
    ("runtime", "method"), [("engines", "none"), ("engines", "anpd"), ("llm_api", "anpd"), ("llm_api", "mtp")]
)
def test_models_need_no_installed_kit(tmp_path: Path, runtime: str, method: str) -> None:
    """Each model's imports resolve in a Python that has the container's packages and the version folder alone."""
    repository = assemble_trtllm_repository(
        resolve(deployment(method, "A", runtime)), tmp_path / "repository"
    )
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    (stubs / "triton_python_backend_utils.py").write_text("TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1\n")
    check = (
        "import sys; root = sys.argv[1]\n"
        "for name in ('openvino', 'pydantic', 'torch', 'onnx', 'build'): sys.modules[name] = None\n"
        "import model; print(model.TritonPythonModel.__module__)\n"
        "rooms = 'build', 'deployments', 'engine', 'model_repo', 'speculators'\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in rooms and sys.modules[name]]\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.startswith('drafthouse.') and m.__file__]\n"
        "assert ours and all(path.startswith(root) for path in ours), ours"
    )
    for path in repository.glob("*/1/model.py"):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path.parent), str(stubs)])}
        command = [sys.executable, "-c", check, str(path.parent)]
        answer = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr


def test_models_import_only_what_the_containers_have() -> None:
    entries = [
        f"model_repo/{name}/model.py" for name in ("preprocessing", "postprocessing", "tensorrt_llm_bls")
    ]
    entries += [f"model_repo/llmapi/{name}/model.py" for name in ("tensorrt_llm", "tensorrt_llm_bls")]
    has = {"numpy", "tokenizers", "yaml", "tensorrt_llm", "triton_python_backend_utils"}
    assert outside_imports(*entries) <= has


@given(
    st.integers(1, 256),
    st.integers(64, 32_768),
    st.floats(0.05, 0.95),
    st.sampled_from(["draft_model", "windowed"]),
)
@settings(max_examples=100, deadline=None)
def test_two_caches_fit_and_hold_alike(batch: int, length: int, fraction: float, method: str) -> None:
    engine = {
        "max_batch_size": batch,
        "max_sequence_length": length,
        "max_num_tokens": length,
        "kv_cache": {"free_gpu_memory_fraction": fraction},
    }
    resolved = resolve(deployment(method, "A", "engines", max_input_length=32, **engine))
    target, draft = kv_shares(resolved)
    assert target.max_tokens == batch * length
    needed = (draft.max_tokens or 0) / target.max_tokens
    cost = 0.25 if method == "draft_model" else 1.0  # of a draft token, where no checkpoint tells
    # The target first: both together take the fraction that the spec gives, and the draft holds its tokens.
    rest = 1 - target.fraction
    assert target.fraction + draft.fraction * rest == pytest.approx(fraction) or draft.fraction == fraction
    assert draft.fraction * rest >= target.fraction * cost * needed * 0.999 or draft.fraction == fraction
    assert 0 < draft.fraction <= fraction


@given(sections())
@settings(max_examples=60, deadline=None)
def test_random_specs_never_give_an_invalid_configuration(drawn: Any) -> None:
    method, line, runtime, speculation, engine = drawn
    try:
        resolved = resolve(deployment(method, line, runtime, speculation, **engine))
        models = trtllm_models(resolved)
    except (ValidationError, UnsupportedDeployment):
        return
    for model in models:
        text = text_format.MessageToString(model.config)
        assert text_format.Parse(text, model_config_pb2.ModelConfig()) == model.config
        assert "${" not in text
        known = contract()["parameters"].get(model.config.name.removesuffix("_draft"), {})
        overrides = {name: value for name, value in parameters(model.config).items() if name in known}
        if resolved.runtime == "engines" and model.config.name != "ensemble":
            # What the kit writes has the form that it asks of the spec.
            again = engine | {"triton_parameters": {model.config.name: overrides}}
            trtllm_models(resolve(deployment(method, line, runtime, speculation, **again)))


def test_the_contract_is_that_of_the_reference() -> None:
    if not REFERENCE.is_file():
        pytest.skip("the reference material is not here")
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    for model, described in reference["inflight_batcher_llm"].items():
        assert set(described["parameters"]) == set(contract()["parameters"].get(model, ()))
        for field in ("inputs", "outputs"):
            ours = {tensor["name"]: tensor for tensor in contract()["models"][model][field]}
            assert set(ours) == {tensor["name"] for tensor in described[field]}
            for tensor in described[field]:
                if "${" not in tensor["data_type"]:
                    assert ours[tensor["name"]] == tensor
        for variable in described["template_variables"]:
            aliases = {"batching_strategy", "engine_dir", "encoder_engine_dir", "triton_backend"}
            there = {*contract()["parameters"].get(model, ()), *contract()["template_variables"][model]}
            assert variable in there | aliases
    described = reference["llmapi"]["tensorrt_llm"]
    for field in ("inputs", "outputs"):
        names = [tensor["name"] for tensor in contract()["llmapi"]["tensorrt_llm"][field]]
        assert names == [tensor["name"] for tensor in described[field]]
