"""The contract of NVIDIA's `llmapi` model, by which the LLM API and vLLM are served, and the models in front of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from build.triton.model_config import Tensors, contract, model_config, run_on_cpu, set_parameters
from build.triton.models import Planned, TritonModel
from build.triton.module_files import python_files
from build.triton.tensors import CACHE_SALT
from build.triton.text_models import (
    FrontedEngine,
    bls_config,
    ensemble_config,
    postprocessing_config,
    waiting_requests,
)
from deployments.spec import DeploymentSpec

_ACCEPTANCE_SOURCE = {"name": "acceptance_source", "data_type": "TYPE_STRING", "dims": [1]}
# What the kit's `llmapi` model has beyond NVIDIA's.
_ADDED = Tensors(
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
        _ACCEPTANCE_SOURCE,
    ],
)
# What the models in front of it have beyond those in front of compiled engines.
_ADDED_IN_FRONT = Tensors(inputs=[CACHE_SALT], outputs=[_ACCEPTANCE_SOURCE])


def as_yaml(arguments: Mapping[str, Any]) -> str:
    """The arguments as the text of a YAML file."""
    return yaml.safe_dump(dict(arguments), sort_keys=False, allow_unicode=True)


def llmapi_tensors() -> Tensors:
    """Tensors of the kit's `llmapi` model: NVIDIA's and its own."""
    described = contract()["llmapi"]["tensorrt_llm"]
    tensors = Tensors(described["inputs"], described["outputs"])
    return tensors.plus(_ADDED.inputs, _ADDED.outputs)


def llmapi_config(parameters: Mapping[str, str], *, instances: int = 1) -> Any:
    """The configuration of `tensorrt_llm`.

    NVIDIA's model leaves the transaction policy to the YAML, which `--disable-auto-complete-config` ignores: it is
    written here too.
    """
    config = model_config("tensorrt_llm", llmapi_tensors(), max_batch_size=0)
    config.backend = "python"
    set_parameters(config, parameters)
    run_on_cpu(config, count=instances)
    config.model_transaction_policy.decoupled = True
    return config


def model_yaml(arguments: Mapping[str, Any], **triton_config: Any) -> str:
    """The `model.yaml` of `tensorrt_llm`: arguments of the engine, and what the model itself goes by."""
    triton = {"max_batch_size": 0, "decoupled": True, "cancellation_check_period_ms": 100}
    return as_yaml({**arguments, "triton_config": {**triton, **triton_config}})


def models_in_front(
    spec: DeploymentSpec, engine: FrontedEngine, tokenizer: Path, **bls_parameters: str
) -> Planned:
    """`ensemble`, `postprocessing` and `tensorrt_llm_bls`; `bls_parameters` beside those that it always has."""
    bls = {
        "tensorrt_llm_model_name": "tensorrt_llm",
        "exclude_input_in_output": str(spec.serving.exclude_input_in_output).lower(),
        "max_requests": waiting_requests(engine),
        **bls_parameters,
    }
    return {
        "ensemble": lambda: TritonModel(ensemble_config(engine, _ADDED_IN_FRONT), {}),
        "postprocessing": lambda: TritonModel(
            postprocessing_config(engine, tokenizer), python_files("model_repo/postprocessing/model.py")
        ),
        "tensorrt_llm_bls": lambda: TritonModel(
            bls_config(engine, bls, _ADDED_IN_FRONT),
            python_files("model_repo/llmapi/tensorrt_llm_bls/model.py"),
        ),
    }
