"""Assembles the Triton model repository of a deployment on the embedded engine.

The contract (`model_repo/contract.json`) holds the tensors of NVIDIA's `inflight_batcher_llm`; the kit adds a few
optional ones, listed here. How a repository is written stands in `build.triton.model_config`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.identity import identity
from build.triton.model_config import (
    MODELS,
    Tensor,
    Tensors,
    add_step,
    contract_tensors,
    model_config,
    run_on_cpu,
    set_parameters,
    staged,
    write_model,
)
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation
from engine.serving.wiring import (
    GENERATION_OUTPUTS,
    GENERATION_TO_POSTPROCESSING,
    PREPROCESSING_TO_GENERATION,
    TO_GENERATION,
    TO_PREPROCESSING,
)
from speculators.model_free import MODEL_FREE
from speculators.registry import settings_of

DRAFT_MODEL = "tensorrt_llm_draft"
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")
"""The models that take text, which say which deployment they are."""
_PYTHON_MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")

_TEXT_LEVEL: list[Tensor] = [
    {"name": "random_seed", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    {"name": "min_length", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
    {"name": "num_draft_tokens", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
]
CACHE_SALT: Tensor = {"name": "cache_salt", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
"""Requests of one salt share KV cache; for engines that can part it, which compiled TensorRT-LLM engines cannot."""

_SALTED: Mapping[str, list[Tensor]] = {
    "ensemble": [CACHE_SALT],
    "tensorrt_llm_bls": [CACHE_SALT],
    "tensorrt_llm": [{**CACHE_SALT, "reshape": []}],
}
# What the kit adds to NVIDIA's tensors: seeds and lengths under the names that outside clients send, speculation
# per request, how much of the input earlier calls have put out, stop words as text, the tokens themselves, what joins
# streamed text without seams and cuts a stop word off it, and what tells the engine that a client has gone.
_ADDED_INPUTS: Mapping[str, list[Tensor]] = {
    "ensemble": _TEXT_LEVEL,
    "tensorrt_llm_bls": _TEXT_LEVEL,
    "tensorrt_llm": [
        *({**tensor, "reshape": []} for tensor in _TEXT_LEVEL),
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
        {
            "name": "continued_tokens",
            "data_type": "TYPE_INT32",
            "dims": [1],
            "reshape": [],
            "optional": True,
        },
        {"name": "stop_words", "data_type": "TYPE_STRING", "dims": [-1], "optional": True},
    ],
    "postprocessing": [
        {"name": "PREVIOUS_TOKENS", "data_type": "TYPE_INT32", "dims": [-1], "optional": True},
        {"name": "IS_FINAL", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
        {"name": "TEXT_CUT", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
        {"name": "GENERATION_HANDLE", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    ],
}
_ADDED_OUTPUTS: Mapping[str, list[Tensor]] = {
    "ensemble": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1, -1]}],
    "tensorrt_llm_bls": [{"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1, -1]}],
    "tensorrt_llm": [
        {"name": "previous_output_ids", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "is_final", "data_type": "TYPE_BOOL", "dims": [1]},
        {"name": "text_cut", "data_type": "TYPE_INT32", "dims": [1]},
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1]},
    ],
}


def kit_tensors(model: str) -> Tensors:
    """Tensors of one of the kit's own models: those of the contract and those that the kit adds."""
    return contract_tensors(model).plus(_ADDED_INPUTS.get(model, ()), _ADDED_OUTPUTS.get(model, ()))


def assemble_repository(spec: DeploymentSpec, engine_directory: Path, repository: Path) -> Path:
    """Write the repository of a deployment on the embedded engine; one that is there is replaced.

    A speculator that was compiled beside the target is taken from there.
    """
    engine = engine_directory.resolve()
    models = {name: _parameters(name, spec, engine) for name in ("ensemble", *_PYTHON_MODELS)}
    who = identity(spec, engine).parameters(prefix_cache=spec.embedded.kv_cache_reuse)
    for name in TEXT_MODELS:
        models[name] |= who
    if spec.draft_deployment is not None:
        draft = _parameters("tensorrt_llm", spec.draft_deployment, _speculator_of(spec, engine))
        models[DRAFT_MODEL] = {**draft, "role": "draft"}
    with staged(repository) as staging:
        for name, parameters in models.items():
            source = MODELS / name.removesuffix("_draft") / "model.py"
            files = {"model.py": source} if name != "ensemble" else {}
            write_model(staging, _config(name, spec, parameters), files)
    return repository


def _config(name: str, spec: DeploymentSpec, parameters: Mapping[str, str]) -> Any:
    like = name.removesuffix("_draft")
    tensors = kit_tensors(like).plus(_SALTED.get(like, ()))
    config = model_config(name, tensors, max_batch_size=spec.embedded.max_batch_size)
    set_parameters(config, parameters)
    if name == "ensemble":
        _add_steps(config)
        return config
    config.backend = "python"
    run_on_cpu(config)
    if like in ("tensorrt_llm", "tensorrt_llm_bls"):
        config.model_transaction_policy.decoupled = True
    return config


def _speculator_of(spec: DeploymentSpec, engine_directory: Path) -> Path:
    return engine_directory.with_name(spec.speculator_directory.name)


def _parameters(name: str, spec: DeploymentSpec, engine_directory: Path) -> dict[str, str]:
    tokenizer = {"tokenizer_dir": str(engine_directory)}
    if name == "tensorrt_llm":
        return {
            **tokenizer,
            "skip_special_tokens": "true",
            "gpt_model_path": str(engine_directory),
            "speculator_path": str(_speculator_of(spec, engine_directory)),
            "deployment": spec.model_dump_json(),
        }
    if name == "ensemble":
        return {}
    if name == "tensorrt_llm_bls":
        return {**tokenizer, **_bls_parameters(spec)}
    if name == "postprocessing":
        return {**tokenizer, "skip_special_tokens": "true", "tensorrt_llm_model_name": "tensorrt_llm"}
    return {**tokenizer, "max_sequence_length": str(spec.embedded.max_sequence_length)}


def _bls_parameters(spec: DeploymentSpec) -> dict[str, str]:
    engine = spec.embedded
    return {
        "engine": "embedded",
        "tensorrt_llm_model_name": "tensorrt_llm",
        # Callers beyond the queue are told so by the engine, hence one thread more than it takes in.
        "max_requests": str(engine.max_batch_size + engine.max_queue_size + 1),
        "max_sequence_length": str(engine.max_sequence_length),
        **{
            name: str(value)
            for name in ("max_one_shot_tokens", "max_request_seconds")
            if (value := getattr(engine, name)) is not None
        },
        "part_cache": str(engine.kv_cache_sharing == "salted").lower(),
        "exclude_input_in_output": str(spec.serving.exclude_input_in_output).lower(),
        "skip_special_tokens": "true",
        **(drafting_parameters(spec.speculation) if spec.bls_drafts else {}),
    }


def drafting_parameters(speculation: AnySpeculation) -> dict[str, str]:
    """Parameters of `tensorrt_llm_bls` by which it drafts: with a second model, or with n-grams."""
    section = speculation.model_dump()
    most = {
        "num_draft_tokens": str(section["draft_length"]),
        "adaptive": str(section["adaptive"]).lower(),
    }
    if speculation.method not in MODEL_FREE:
        return {**most, "tensorrt_llm_draft_model_name": DRAFT_MODEL}
    settings = {key: section[key] for key in settings_of(speculation.method)}
    return {**most, "drafter": speculation.method, "drafter_settings": json.dumps(settings)}


def _add_steps(config: Any) -> None:
    """Wire preprocessing -> tensorrt_llm -> postprocessing; inner tensors get a leading underscore."""
    add_step(
        config,
        "preprocessing",
        {inner: public for public, inner in TO_PREPROCESSING.items()},
        {inner: f"_{inner}" for inner in PREPROCESSING_TO_GENERATION},
    )
    generated = {name: name for name in GENERATION_OUTPUTS}
    generated |= {name: f"_{name}" for name in GENERATION_TO_POSTPROCESSING if name not in generated}
    add_step(
        config,
        "tensorrt_llm",
        {inner: public for public, inner in TO_GENERATION.items()}
        | {name: f"_{inner}" for inner, name in PREPROCESSING_TO_GENERATION.items()},
        generated,
    )
    add_step(
        config,
        "postprocessing",
        {inner: generated[name] for name, inner in GENERATION_TO_POSTPROCESSING.items()},
        {"OUTPUT": "text_output"},
    )
