"""The Triton model repository of a deployment on TensorRT-LLM: engines (line A) or the LLM API (both lines).

With engines, `tensorrt_llm` (and `tensorrt_llm_draft`, if a second engine drafts) runs on NVIDIA's C++ backend; with
the LLM API it is the kit's `llmapi` model. What stands in front of it is `build.triton.text_models`' business. A
repository carries the kit's modules that its models import, so it is all that a container needs beside its own
packages, the engines or checkpoints, and the tokenizer.

Example::

    resolved = resolve(load_spec(Path("deployments/llama3-8b-medusa-trtllm.yaml")))
    assemble_trtllm_repository(resolved, resolved.spec.serving.repository)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from build.identity import identity
from build.repository import drafting_parameters
from build.triton.llmapi import llmapi_config, model_yaml, models_in_front
from build.triton.model_config import contract_tensors, model_config, run_on_cpu, set_parameters
from build.triton.models import Planned, TritonModel, identify, make_models, write_repository
from build.triton.module_files import python_files
from build.triton.parameters import settings
from build.triton.tensors import DRAFT_MODEL
from build.triton.text_models import (
    bls_config,
    ensemble_config,
    postprocessing_config,
    preprocessing_config,
    set_queue,
    typed,
    waiting_requests,
)
from build.trtllm.llm_api.arguments import llm_arguments
from build.trtllm.methods.table import accepts_by_logits
from build.trtllm.repository.engine_parameters import draft_parameters, fast_logits, target_parameters
from build.trtllm.resolved import Resolved


def assemble_trtllm_repository(
    resolved: Resolved, repository: Path, *, tokenizer_info: Path | None = None
) -> Path:
    """Write the repository; one that is there is replaced.

    Args:
        resolved: the deployment.
        repository: where it goes.
        tokenizer_info: XGrammar's description of the tokenizer, for guided decoding with engines.

    Raises:
        UnsupportedDeployment: `engine.triton_parameters` names what does not exist, or gives a value of the wrong form.
    """
    return write_repository(repository, trtllm_models(resolved, tokenizer_info=tokenizer_info))


def trtllm_models(resolved: Resolved, *, tokenizer_info: Path | None = None) -> list[TritonModel]:
    """The repository's models, unwritten; arguments and errors as of `assemble_trtllm_repository`."""
    base = Path.cwd()
    if resolved.runtime == "llm_api":
        planned = _llm_api_models(resolved, base)
    else:
        planned = _engine_models(resolved, base, tokenizer_info)
    models = make_models(planned, resolved.engine.triton_parameters)
    identify(models, identity(resolved.spec).parameters(prefix_cache=_keeps_prompts(resolved, models)))
    return models


def _keeps_prompts(resolved: Resolved, models: Sequence[TritonModel]) -> bool:
    """Whether requests find the KV cache of earlier ones, as the repository has it after all overrides."""
    if resolved.runtime == "llm_api":
        return bool(llm_arguments(resolved)["kv_cache_config"].get("enable_block_reuse", True))
    (target,) = (model.config for model in models if model.config.name == "tensorrt_llm")
    return target.parameters["enable_kv_cache_reuse"].string_value.lower() in ("true", "1")


def _engine_models(resolved: Resolved, root: Path, tokenizer_info: Path | None) -> Planned:
    tokenizer, engine = root / resolved.spec.target.model, resolved.engine
    target, draft = root / resolved.target_engine, resolved.draft_engine
    drafts = draft is not None or resolved.support.drafting == "bls"
    bls: dict[str, str | None] = {
        "engine": "tensorrt_llm",
        "tokenizer_dir": str(tokenizer),
        "gpt_model_path": str(target),
        "tensorrt_llm_model_name": "tensorrt_llm",
        "tensorrt_llm_draft_model_name": None,
        "max_requests": waiting_requests(resolved.engine),
        "max_sequence_length": str(resolved.engine.max_sequence_length),
        "decoding_mode": resolved.support.decoding_mode,
        "use_draft_logits": "true" if accepts_by_logits(resolved) else None,
        "fast_logits": "true" if fast_logits(resolved) else None,
        "exclude_input_in_output": "true" if resolved.spec.serving.exclude_input_in_output else "false",
        **(drafting_parameters(resolved.spec.speculation) if drafts else {}),
    }
    models: dict[str, Callable[[], TritonModel]] = {
        "ensemble": lambda: TritonModel(ensemble_config(engine), {}),
        "preprocessing": lambda: TritonModel(
            preprocessing_config(engine, tokenizer, target), _files("preprocessing")
        ),
        "tensorrt_llm": lambda: _backend_model(
            resolved, "tensorrt_llm", target_parameters(resolved, target, tokenizer, tokenizer_info)
        ),
        "postprocessing": lambda: TritonModel(
            postprocessing_config(engine, tokenizer), _files("postprocessing")
        ),
        "tensorrt_llm_bls": lambda: TritonModel(bls_config(engine, bls), _files("tensorrt_llm_bls")),
    }
    if draft is not None:
        parameters = draft_parameters(resolved, root / draft)
        models[DRAFT_MODEL] = lambda: _backend_model(resolved, DRAFT_MODEL, parameters)
    return models


def _backend_model(resolved: Resolved, name: str, parameters: Mapping[str, str | None]) -> TritonModel:
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
    return TritonModel(config, {})


def _llm_api_models(resolved: Resolved, root: Path) -> Planned:
    front = models_in_front(resolved.spec, resolved.engine, root / resolved.spec.target.model)
    return {**front, "tensorrt_llm": lambda: _generation(resolved, root)}


def _generation(resolved: Resolved, root: Path) -> TritonModel:
    """`tensorrt_llm` on the LLM API."""
    gpus = resolved.engine.launch.gpu_device_ids
    filled = settings(
        "tensorrt_llm",
        resolved.engine.triton_parameters,
        like="llmapi",
        parameters={"gpu_device_ids": ",".join(map(str, gpus)) if gpus else None},
        variables={},
    )
    arguments = _located(llm_arguments(resolved), "model", root)
    if "speculative_config" in arguments:
        located = _located(arguments["speculative_config"], "speculative_model_dir", root)
        arguments["speculative_config"] = located
    instances = len(filled.parameters.get("gpu_device_ids", "").split(";"))
    return TritonModel(
        llmapi_config(filled.parameters, instances=instances),
        {**python_files("model_repo/llmapi/tensorrt_llm/model.py"), "model.yaml": model_yaml(arguments)},
    )


def _located(section: Mapping[str, Any], key: str, root: Path) -> dict[str, Any]:
    """The section with a model's directory as the server finds it; a hub id stays as it is."""
    value = section.get(key)
    return {**section, key: str(root / value)} if value and Path(value).exists() else dict(section)


def _files(model: str) -> dict[str, Path | str]:
    return python_files(f"model_repo/{model}/model.py")
