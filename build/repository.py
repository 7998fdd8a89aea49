"""Assembles the Triton model repository of a deployment: config.pbtxt files from the contract, `model.py` files.

The contract (`model_repo/contract.json`) holds the tensors of NVIDIA's `inflight_batcher_llm`; the kit adds a few
optional ones, listed here. Configurations are written as Triton's own `ModelConfig` protobuf in text form, so
what is written is what Triton parses. The repository is assembled beside its destination and renamed.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deployments.spec import DeploymentSpec
from engine.serving.wiring import (
    GENERATION_OUTPUTS,
    GENERATION_TO_POSTPROCESSING,
    PREPROCESSING_TO_GENERATION,
    TO_GENERATION,
    TO_PREPROCESSING,
)

ROOT = Path(__file__).resolve().parents[1]
_MODELS = ROOT / "model_repo"
_PYTHON_MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")

_TEXT_LEVEL = [
    {"name": "random_seed", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    {"name": "min_length", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
    {"name": "num_draft_tokens", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
]
# What the kit adds to NVIDIA's tensors: seeds and lengths under the names that outside clients send, speculation
# per request, the tokens themselves, what joins streamed text without seams, and what tells the engine that a
# client has gone.
_ADDED_INPUTS: Mapping[str, list[dict[str, Any]]] = {
    "ensemble": _TEXT_LEVEL,
    "tensorrt_llm_bls": _TEXT_LEVEL,
    "tensorrt_llm": [
        *({**tensor, "reshape": []} for tensor in _TEXT_LEVEL),
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    ],
    "postprocessing": [
        {"name": "PREVIOUS_TOKENS", "data_type": "TYPE_INT32", "dims": [-1], "optional": True},
        {"name": "IS_FINAL", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
        {"name": "GENERATION_HANDLE", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    ],
}
_ADDED_OUTPUTS: Mapping[str, list[dict[str, Any]]] = {
    "ensemble": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1, -1]}],
    "tensorrt_llm_bls": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1, -1]}],
    "tensorrt_llm": [
        {"name": "previous_output_ids", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "is_final", "data_type": "TYPE_BOOL", "dims": [1]},
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1]},
    ],
}


def assemble_repository(spec: DeploymentSpec, engine_directory: Path, repository: Path) -> Path:
    """Write the repository of a deployment on the embedded engine; one that is there is replaced."""
    repository.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{repository.name}.", dir=repository.parent))
    try:
        for name in ("ensemble", *_PYTHON_MODELS):
            version = staging / name / "1"
            version.mkdir(parents=True)
            if name in _PYTHON_MODELS:
                shutil.copy2(_MODELS / name / "model.py", version / "model.py")
            config = _config(name, spec, engine_directory.resolve())
            (staging / name / "config.pbtxt").write_text(
                text_format.MessageToString(config), encoding="utf-8"
            )
        staging.chmod(0o755)
        if repository.exists():
            shutil.rmtree(repository)
        staging.rename(repository)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return repository


def _config(name: str, spec: DeploymentSpec, engine_directory: Path) -> Any:
    contract = json.loads((_MODELS / "contract.json").read_text(encoding="utf-8"))["models"][name]
    config = model_config_pb2.ModelConfig(name=name, max_batch_size=spec.engine.max_batch_size)
    for field, added in (("input", _ADDED_INPUTS), ("output", _ADDED_OUTPUTS)):
        for tensor in _unique([*contract[f"{field}s"], *added.get(name, [])]):
            _add_tensor(getattr(config, field).add(), tensor)
    if name == "ensemble":
        config.platform = "ensemble"
        _add_steps(config)
        return config
    config.backend = "python"
    for key, value in _parameters(name, spec, engine_directory).items():
        config.parameters[key].string_value = value
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if name in ("tensorrt_llm", "tensorrt_llm_bls"):
        config.model_transaction_policy.decoupled = True
    return config


def _unique(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tensors by name; NVIDIA's BLS has `num_draft_tokens` already."""
    return list({tensor["name"]: tensor for tensor in reversed(tensors)}.values())[::-1]


def _add_tensor(target: Any, tensor: Mapping[str, Any]) -> None:
    target.name = tensor["name"]
    target.data_type = model_config_pb2.DataType.Value(tensor["data_type"])
    target.dims.extend(tensor["dims"])
    for flag in ("optional", "allow_ragged_batch"):
        if tensor.get(flag):
            setattr(target, flag, True)
    if "reshape" in tensor:
        target.reshape.shape.extend(tensor["reshape"])
        target.reshape.SetInParent()


def _parameters(name: str, spec: DeploymentSpec, engine_directory: Path) -> dict[str, str]:
    directory = str(engine_directory)
    if name == "tensorrt_llm":
        return {"gpt_model_path": directory, "tokenizer_dir": directory, "deployment": spec.model_dump_json()}
    if name == "tensorrt_llm_bls":
        # Callers beyond the queue are told so by the engine, hence one thread more than it takes in.
        most = spec.engine.max_batch_size + spec.engine.max_queue_size + 1
        return {"tensorrt_llm_model_name": "tensorrt_llm", "max_requests": str(most)}
    tokenizer = {"tokenizer_dir": directory}
    if name == "preprocessing":
        return tokenizer
    return {**tokenizer, "skip_special_tokens": "true", "tensorrt_llm_model_name": "tensorrt_llm"}


def _add_steps(config: Any) -> None:
    """Wire preprocessing -> tensorrt_llm -> postprocessing; inner tensors get a leading underscore."""
    steps = config.ensemble_scheduling.step
    first = steps.add(model_name="preprocessing", model_version=-1)
    for public, inner in TO_PREPROCESSING.items():
        first.input_map[inner] = public
    for inner in PREPROCESSING_TO_GENERATION:
        first.output_map[inner] = f"_{inner}"
    second = steps.add(model_name="tensorrt_llm", model_version=-1)
    for public, inner in TO_GENERATION.items():
        second.input_map[inner] = public
    for inner, name in PREPROCESSING_TO_GENERATION.items():
        second.input_map[name] = f"_{inner}"
    for name in GENERATION_OUTPUTS:
        second.output_map[name] = name
    for name in GENERATION_TO_POSTPROCESSING:
        second.output_map[name] = name if name in GENERATION_OUTPUTS else f"_{name}"
    third = steps.add(model_name="postprocessing", model_version=-1)
    for name, inner in GENERATION_TO_POSTPROCESSING.items():
        third.input_map[inner] = second.output_map[name]
    third.output_map["OUTPUT"] = "text_output"
