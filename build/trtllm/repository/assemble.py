"""The Triton model repository of a deployment on TensorRT-LLM: engines (line A) or the LLM API (both lines).

With engines, `tensorrt_llm` (and `tensorrt_llm_draft`, if a second engine drafts) runs on NVIDIA's C++ backend; with
the LLM API it is the kit's `llmapi` model. What stands in front of it is `build.triton.text_models`' business. A
repository carries the kit's modules that its models import, so it is all that a container needs beside its own
packages, the engines or checkpoints, and the tokenizer.

Example::

    resolved = resolve(load_spec(Path("deployments/llama3-8b-medusa-trtllm.yaml")))
    assemble_trtllm_repository(resolved, resolved.spec.serving.repository)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.identity import identity
from build.repository import CACHE_SALT, DRAFT_MODEL, TEXT_MODELS, drafting_parameters
from build.triton.model_config import (
    Tensors,
    contract,
    contract_tensors,
    model_config,
    run_on_cpu,
    set_parameters,
    staged,
    write_model,
)
from build.triton.parameters import check_models, settings
from build.triton.text_models import (
    bls_config,
    ensemble_config,
    postprocessing_config,
    preprocessing_config,
    python_files,
    set_queue,
    typed,
    waiting_requests,
)
from build.trtllm.llm_api.arguments import as_yaml, llm_arguments
from build.trtllm.repository.engine_parameters import (
    draft_logits,
    draft_parameters,
    fast_logits,
    target_parameters,
)
from build.trtllm.resolved import Resolved

ACCEPTANCE_SOURCE = {"name": "acceptance_source", "data_type": "TYPE_STRING", "dims": [1]}
# What the kit's `llmapi` model has beyond NVIDIA's.
_LLMAPI_ADDED = Tensors(
    inputs=[
        {"name": f"sampling_param_{name}", "data_type": f"TYPE_{kind}", "dims": [size], "optional": True}
        for name, kind, size in (
            *(("min_tokens", "INT32", 1), ("repetition_penalty", "FP32", 1), ("end_id", "INT32", 1)),
            *(("logprobs", "INT32", 1), ("bad", "STRING", -1)),
        )
    ]
    + [
        {"name": name, "data_type": "TYPE_STRING", "dims": [1], "optional": True}
        for name in ("guided_decoding_guide_type", "guided_decoding_guide")
    ]
    + [{"name": "errors_as_output", "data_type": "TYPE_BOOL", "dims": [1], "optional": True}, CACHE_SALT],
    outputs=[
        {"name": "output_ids", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "output_log_probs", "data_type": "TYPE_FP32", "dims": [-1]},
        {"name": "input_ids", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "num_input_tokens", "data_type": "TYPE_INT32", "dims": [1]},
        {"name": "num_output_tokens", "data_type": "TYPE_INT32", "dims": [1]},
        {"name": "is_final", "data_type": "TYPE_BOOL", "dims": [1]},
        {"name": "text_cut", "data_type": "TYPE_INT32", "dims": [1]},
        {"name": "error", "data_type": "TYPE_STRING", "dims": [1]},
        ACCEPTANCE_SOURCE,
    ],
)


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository: its `ModelConfig`, and the files of its version."""

    config: Any
    files: Mapping[str, Path | str]


def assemble_trtllm_repository(
    resolved: Resolved, repository: Path, *, root: Path | None = None, tokenizer_info: Path | None = None
) -> Path:
    """Write the repository; one that is there is replaced.

    Args:
        resolved: the deployment.
        repository: where it goes.
        root: directory that the server resolves the spec's paths against; None: the current one.
        tokenizer_info: XGrammar's description of the tokenizer, for guided decoding with engines.

    Raises:
        SpecError: `engine.triton_parameters` names what does not exist, or gives a value of the wrong form.
    """
    models = trtllm_models(resolved, root=root, tokenizer_info=tokenizer_info)
    with staged(repository) as staging:
        for model in models:
            write_model(staging, model.config, model.files)
    return repository


def trtllm_models(
    resolved: Resolved, *, root: Path | None = None, tokenizer_info: Path | None = None
) -> list[TritonModel]:
    """The repository's models, unwritten; arguments and errors as of `assemble_trtllm_repository`."""
    base = (root or Path.cwd()).absolute()
    if resolved.runtime == "llm_api":
        models = _llm_api_models(resolved, base)
    else:
        models = _engine_models(resolved, base, tokenizer_info)
    check_models(resolved.engine.triton_parameters, [model.config.name for model in models])
    who = identity(resolved.spec).parameters(prefix_cache=_keeps_prompts(resolved, models))
    for model in models:
        if model.config.name in TEXT_MODELS:
            set_parameters(model.config, who)
    return models


def _keeps_prompts(resolved: Resolved, models: Sequence[TritonModel]) -> bool:
    """Whether requests find the KV cache of earlier ones, as the repository has it after all overrides."""
    if resolved.runtime == "llm_api":
        return bool(llm_arguments(resolved)["kv_cache_config"].get("enable_block_reuse", True))
    (target,) = (model.config for model in models if model.config.name == "tensorrt_llm")
    return target.parameters["enable_kv_cache_reuse"].string_value.lower() in ("true", "1")


def _engine_models(resolved: Resolved, root: Path, tokenizer_info: Path | None) -> list[TritonModel]:
    tokenizer = root / resolved.spec.target.model
    target, draft = root / resolved.target_engine, resolved.draft_engine
    drafts = draft is not None or resolved.cell.drafting == "bls"
    bls: dict[str, str | None] = {
        "engine": "tensorrt_llm",
        "tokenizer_dir": str(tokenizer),
        "gpt_model_path": str(target),
        "tensorrt_llm_model_name": "tensorrt_llm",
        "tensorrt_llm_draft_model_name": None,
        "max_requests": waiting_requests(resolved.engine),
        "max_sequence_length": str(resolved.engine.max_sequence_length),
        "decoding_mode": resolved.cell.decoding_mode,
        "use_draft_logits": "true" if draft_logits(resolved) else None,
        "fast_logits": "true" if fast_logits(resolved) else None,
        "exclude_input_in_output": "true" if resolved.spec.serving.exclude_input_in_output else "false",
        **(drafting_parameters(resolved.spec.speculation) if drafts else {}),
    }
    models = [
        TritonModel(ensemble_config(resolved.engine), {}),
        TritonModel(preprocessing_config(resolved.engine, tokenizer, target), _files("preprocessing")),
        TritonModel(
            _backend_config(
                resolved, "tensorrt_llm", target_parameters(resolved, target, tokenizer, tokenizer_info)
            ),
            {},
        ),
        TritonModel(postprocessing_config(resolved.engine, tokenizer), _files("postprocessing")),
        TritonModel(bls_config(resolved.engine, bls), _files("tensorrt_llm_bls")),
    ]
    if draft:
        models.append(
            TritonModel(_backend_config(resolved, DRAFT_MODEL, draft_parameters(resolved, root / draft)), {})
        )
    return models


def _backend_config(resolved: Resolved, name: str, parameters: Mapping[str, str | None]) -> Any:
    """A model on NVIDIA's C++ backend: the contract's tensors and no others."""
    engine = resolved.engine
    filled = settings(
        name,
        engine.triton_parameters,
        like="tensorrt_llm",
        parameters=parameters,
        variables={
            "triton_max_batch_size": str(engine.max_batch_size),
            "decoupled_mode": "true",
            "max_queue_delay_microseconds": "0",
            "max_queue_size": str(engine.max_queue_size),
            "encoder_input_features_data_type": "TYPE_FP16",
            # What trtllm-build's --logits_dtype has made; the backend refuses to answer with another.
            "logits_datatype": f"TYPE_{'FP16' if engine.build_flags.get('logits_dtype') == 'float16' else 'FP32'}",
            "prompt_embedding_table_data_type": "TYPE_FP16",
        },
    )
    tensors = typed(contract_tensors("tensorrt_llm"), filled.variables)
    config = model_config(name, tensors, max_batch_size=filled.number("triton_max_batch_size"))
    config.backend = "tensorrtllm"
    set_parameters(config, filled.parameters)
    set_queue(config, filled)
    run_on_cpu(config)
    config.model_transaction_policy.decoupled = filled.variables["decoupled_mode"].lower() in ("true", "1")
    return config


def _llm_api_models(resolved: Resolved, root: Path) -> list[TritonModel]:
    tokenizer = root / resolved.spec.target.model
    bls = {
        "tensorrt_llm_model_name": "tensorrt_llm",
        "exclude_input_in_output": "true" if resolved.spec.serving.exclude_input_in_output else "false",
        "max_requests": waiting_requests(resolved.engine),
    }
    added = Tensors(inputs=[CACHE_SALT], outputs=[ACCEPTANCE_SOURCE])
    generation = {
        **python_files("model_repo/llmapi/tensorrt_llm/model.py"),
        "model.yaml": _model_yaml(resolved, root),
    }
    return [
        TritonModel(ensemble_config(resolved.engine, added), {}),
        TritonModel(_llmapi_config(resolved), generation),
        TritonModel(postprocessing_config(resolved.engine, tokenizer), _files("postprocessing")),
        TritonModel(
            bls_config(resolved.engine, bls, added),
            python_files("model_repo/llmapi/tensorrt_llm_bls/model.py"),
        ),
    ]


def _llmapi_config(resolved: Resolved) -> Any:
    """`tensorrt_llm` on the LLM API.

    NVIDIA's model leaves the transaction policy to the YAML, which `--disable-auto-complete-config` ignores: it is
    written here too.
    """
    gpus = resolved.engine.launch.gpu_device_ids
    filled = settings(
        "tensorrt_llm",
        resolved.engine.triton_parameters,
        like="llmapi",
        parameters={"gpu_device_ids": ",".join(map(str, gpus)) if gpus else None},
        variables={},
    )
    config = model_config("tensorrt_llm", llmapi_tensors(), max_batch_size=0)
    config.backend = "python"
    set_parameters(config, filled.parameters)
    run_on_cpu(config, count=len(filled.parameters.get("gpu_device_ids", "").split(";")))
    config.model_transaction_policy.decoupled = True
    return config


def llmapi_tensors() -> Tensors:
    """Tensors of the kit's `llmapi` model: NVIDIA's and its own."""
    described = contract()["llmapi"]["tensorrt_llm"]
    tensors = Tensors(described["inputs"], described["outputs"])
    return tensors.plus(_LLMAPI_ADDED.inputs, _LLMAPI_ADDED.outputs)


def _model_yaml(resolved: Resolved, root: Path) -> str:
    arguments = _located(llm_arguments(resolved), "model", root)
    if "speculative_config" in arguments:
        located = _located(arguments["speculative_config"], "speculative_model_dir", root)
        arguments["speculative_config"] = located
    triton = {"max_batch_size": 0, "decoupled": True, "cancellation_check_period_ms": 100}
    return as_yaml({**arguments, "triton_config": triton})


def _located(section: Mapping[str, Any], key: str, root: Path) -> dict[str, Any]:
    """The section with a model's directory as the server finds it; a hub id stays as it is."""
    value = section.get(key)
    return {**section, key: str(root / value)} if value and Path(value).exists() else dict(section)


def _files(model: str) -> dict[str, Path | str]:
    return python_files(f"model_repo/{model}/model.py")
