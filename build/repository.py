"""Assembles the Triton model repository of a deployment on the embedded engine.

How a repository is written stands in `build.triton.model_config`, its tensors in `build.triton.tensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from build.identity import identity
from build.triton.model_config import (
    MODELS,
    Tensor,
    add_step,
    model_config,
    run_on_cpu,
    set_parameters,
    staged,
    write_model,
)
from build.triton.tensors import CACHE_SALT, DRAFT_MODEL, TEXT_MODELS, kit_tensors
from deployments.spec import DeploymentSpec
from deployments.speculation import AnySpeculation, PlannedSpeculation
from engine.planned import speculator_directories, with_plan_at
from engine.serving.wiring import (
    GENERATION_OUTPUTS,
    GENERATION_TO_POSTPROCESSING,
    PREPROCESSING_TO_GENERATION,
    TO_GENERATION,
    TO_PREPROCESSING,
)
from speculators.model_free import MODEL_FREE
from speculators.registry import settings_of

_PLAN = "plan.json"
_PYTHON_MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "tensorrt_llm_bls")
_SALTED: Mapping[str, list[Tensor]] = {
    "ensemble": [CACHE_SALT],
    "tensorrt_llm_bls": [CACHE_SALT],
    "tensorrt_llm": [{**CACHE_SALT, "reshape": []}],
}


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
        (drafts,) = _speculators_of(spec, engine).values()
        draft = _parameters("tensorrt_llm", spec.draft_deployment, drafts)
        models[DRAFT_MODEL] = {**draft, "role": "draft"}
    plan: dict[str, Path] = {}
    if isinstance(spec.speculation, PlannedSpeculation):
        # Another plan may be made in its place, and the server may run in another directory.
        plan = {_PLAN: spec.speculation.plan}
        there = with_plan_at(spec, repository.absolute() / "tensorrt_llm" / "1" / _PLAN)
        models["tensorrt_llm"]["deployment"] = there.model_dump_json()
    with staged(repository) as staging:
        for name, parameters in models.items():
            source = MODELS / name.removesuffix("_draft") / "model.py"
            files = {"model.py": source} if name != "ensemble" else {}
            files |= plan if name == "tensorrt_llm" else {}
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


def _speculators_of(spec: DeploymentSpec, engine_directory: Path) -> dict[str, Path]:
    """Compiled beside the target, by the deployment that each belongs to."""
    found = speculator_directories(spec)
    return {name: engine_directory.with_name(path.name) for name, path in found.items()}


def _parameters(name: str, spec: DeploymentSpec, engine_directory: Path) -> dict[str, str]:
    tokenizer = {"tokenizer_dir": str(engine_directory)}
    if name == "tensorrt_llm":
        return {
            **tokenizer,
            "skip_special_tokens": "true",
            "gpt_model_path": str(engine_directory),
            "speculator_paths": json.dumps(
                {name: str(path) for name, path in _speculators_of(spec, engine_directory).items()}
            ),
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
