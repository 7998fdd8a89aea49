"""The models around `tensorrt_llm` in the repositories for TensorRT-LLM, the same for engines and the LLM API.

`ensemble` has two steps: `tensorrt_llm_bls` makes tokens, `postprocessing` makes text of them. The three steps of the
embedded engine would not do here. Neither the C++ backend nor NVIDIA's `llmapi` model says with a streamed chunk what
came before it and whether it is the last one, without which a character that is split over chunks comes out broken;
an ensemble keeps no state, the BLS does. Drafts from outside the target (a second engine, n-grams) are made there too,
so requests speculate through either door. And `postprocessing`, which unlike a running step is told when a client has
left, tells the BLS.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from build.triton.model_config import (
    Tensor,
    Tensors,
    add_step,
    model_config,
    run_on_cpu,
    set_parameters,
)
from build.triton.parameters import ModelSettings, settings
from build.triton.tensors import kit_tensors
from engine.serving.wiring import GENERATION_OUTPUTS, GENERATION_TO_POSTPROCESSING


class FrontedEngine(Protocol):
    """What the models in front of an engine go by: a spec's `engine` section."""

    @property
    def max_batch_size(self) -> int: ...
    @property
    def max_queue_size(self) -> int: ...
    @property
    def triton_parameters(self) -> dict[str, dict[str, str]]: ...


_STEP_TENSORS = Tensors(
    inputs=[
        {"name": "stop", "data_type": "TYPE_BOOL", "dims": [1], "optional": True},
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    ],
    outputs=[
        {"name": "sequence_length", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "previous_output_ids", "data_type": "TYPE_INT32", "dims": [-1]},
        {"name": "is_final", "data_type": "TYPE_BOOL", "dims": [1]},
        {"name": "text_cut", "data_type": "TYPE_INT32", "dims": [1]},
        {"name": "generation_handle", "data_type": "TYPE_UINT64", "dims": [1]},
    ],
)
"""What `tensorrt_llm_bls` has as a step of the ensemble."""

_NOTHING = Tensors(inputs=(), outputs=())

_TYPED = {"context_logits": "logits_datatype", "generation_logits": "logits_datatype"}
_TYPED |= {"prompt_embedding_table": "prompt_embedding_table_data_type", "draft_logits": "logits_datatype"}
_TYPED |= {"encoder_input_features": "encoder_input_features_data_type"}


def typed(tensors: Tensors, variables: Mapping[str, str]) -> Tensors:
    """The tensors with the element types that the template variables choose."""

    def retyped(tensor: Tensor) -> Tensor:
        chosen = variables.get(_TYPED.get(tensor["name"], ""))
        return {**tensor, "data_type": chosen} if chosen else tensor

    return Tensors([retyped(item) for item in tensors.inputs], [retyped(item) for item in tensors.outputs])


def ensemble_config(engine: FrontedEngine, added: Tensors = _NOTHING) -> Any:
    """The `ensemble` model; `added` are tensors of the BLS that go beyond the kit's usual ones."""
    filled = _settings(engine, "ensemble", {}, {"logits_datatype": "TYPE_FP32"})
    tensors = typed(kit_tensors("ensemble").plus(added.inputs, added.outputs), filled.variables)
    config = model_config("ensemble", tensors, max_batch_size=filled.number("triton_max_batch_size"))
    outputs = {name: name for name in (*GENERATION_OUTPUTS, *(item["name"] for item in added.outputs))}
    outputs |= {name: f"_{name}" for name in GENERATION_TO_POSTPROCESSING if name not in outputs}
    add_step(config, "tensorrt_llm_bls", {item["name"]: item["name"] for item in tensors.inputs}, outputs)
    add_step(
        config,
        "postprocessing",
        {inner: outputs[name] for name, inner in GENERATION_TO_POSTPROCESSING.items()},
        {"OUTPUT": "text_output"},
    )
    return config


def bls_config(engine: FrontedEngine, parameters: Mapping[str, str | None], added: Tensors = _NOTHING) -> Any:
    """The `tensorrt_llm_bls` model."""
    filled = _settings(
        engine,
        "tensorrt_llm_bls",
        parameters,
        {
            "decoupled_mode": "true",
            "bls_instance_count": "1",
            "logits_datatype": "TYPE_FP32",
            "prompt_embedding_table_data_type": "TYPE_FP16",
        },
    )
    tensors = kit_tensors("tensorrt_llm_bls").plus(_STEP_TENSORS.inputs, _STEP_TENSORS.outputs)
    tensors = tensors.plus(added.inputs, added.outputs)
    config = _python_config("tensorrt_llm_bls", typed(tensors, filled.variables), filled)
    run_on_cpu(config, count=filled.number("bls_instance_count"))
    config.model_transaction_policy.decoupled = filled.variables["decoupled_mode"].lower() in ("true", "1")
    return config


def preprocessing_config(engine: FrontedEngine, tokenizer: Path, target_engine: Path) -> Any:
    """The `preprocessing` model in front of engines; it takes the vocabulary's size from the target engine."""
    filled = _settings(
        engine,
        "preprocessing",
        {
            "tokenizer_dir": str(tokenizer),
            "add_special_tokens": "true",
            "gpt_model_path": str(target_engine),
            "engine": "tensorrt_llm",
        },
        {
            "preprocessing_instance_count": "1",
            "max_queue_delay_microseconds": "0",
            "max_queue_size": str(engine.max_queue_size),
        },
    )
    config = _python_config("preprocessing", kit_tensors("preprocessing"), filled)
    run_on_cpu(config, count=filled.number("preprocessing_instance_count"))
    set_queue(config, filled)
    return config


def postprocessing_config(engine: FrontedEngine, tokenizer: Path) -> Any:
    """The `postprocessing` model."""
    filled = _settings(
        engine,
        "postprocessing",
        {
            "tokenizer_dir": str(tokenizer),
            "skip_special_tokens": "true",
            "tensorrt_llm_model_name": "tensorrt_llm_bls",
        },
        {"postprocessing_instance_count": "1"},
    )
    config = _python_config("postprocessing", kit_tensors("postprocessing"), filled)
    run_on_cpu(config, count=filled.number("postprocessing_instance_count"))
    return config


def set_queue(config: Any, filled: ModelSettings) -> None:
    """Batching and queue of a model, as NVIDIA's configurations have them; a queue size of 0 is no limit."""
    batching = config.dynamic_batching
    batching.preferred_batch_size.append(filled.number("triton_max_batch_size"))
    batching.max_queue_delay_microseconds = filled.number("max_queue_delay_microseconds")
    batching.default_queue_policy.max_queue_size = filled.number("max_queue_size")


def waiting_requests(engine: FrontedEngine) -> str:
    """Threads of the BLS: one for each request that runs or waits."""
    return str(
        2 * engine.max_batch_size
        if engine.max_queue_size == 0
        else engine.max_batch_size + engine.max_queue_size
    )


def _settings(
    engine: FrontedEngine, model: str, parameters: Mapping[str, str | None], variables: Mapping[str, str]
) -> ModelSettings:
    return settings(
        model,
        engine.triton_parameters,
        parameters=parameters,
        variables={"triton_max_batch_size": str(engine.max_batch_size), **variables},
    )


def _python_config(name: str, tensors: Tensors, filled: ModelSettings) -> Any:
    config = model_config(name, tensors, max_batch_size=filled.number("triton_max_batch_size"))
    config.backend = "python"
    set_parameters(config, filled.parameters)
    return config
