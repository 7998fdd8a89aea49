"""Parameters and template variables of NVIDIA's configurations: there where they are needed, settable, checked."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from build.triton.model_config import contract
from deployments.spec import SpecError
from tests.build.trtllm.repository.test_triton_repository import EXISTING, configs, parameters

SAMPLES = {
    "text": "somewhere",
    "int": "3",
    "int list": "4096,1024",
    "fraction": "0.25",
    "bool": "false",
    "device ids": "0,1;2,3",
    "choices": "{0}, {0, 0}, {1}",
}

# `GetParameter` outside any try in model_instance_state.cc (TensorRT-LLM at 0c8de69a, tensorrtllm_backend r25.05).
READ_UNGUARDED = {
    *("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend"),
}


@pytest.mark.parametrize("method", [name for line, runtime, name in EXISTING if runtime == "engines"])
def test_what_the_backend_reads_without_a_fallback_is_always_there(method: str) -> None:
    backends = [
        config for config in configs(method, "A", "engines").values() if config.backend == "tensorrtllm"
    ]
    assert backends
    for config in backends:
        values = parameters(config)
        assert values.keys() >= READ_UNGUARDED
        assert values["guided_decoding_backend"] == values["xgrammar_tokenizer_info_path"] == ""
        text = text_format.MessageToString(config)
        again = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert parameters(again).keys() >= READ_UNGUARDED, "an empty value survives the file"
    empty = {"tensorrt_llm": {"guided_decoding_backend": ""}}
    assert parameters(configs(method, "A", "engines", triton_parameters=empty)["tensorrt_llm"])


ALL_PARAMETERS = [
    (model, name, form)
    for model, known in contract()["parameters"].items()
    if model != "llmapi"
    for name, form in known.items()
]


@pytest.mark.parametrize(("model", "name", "form"), ALL_PARAMETERS)
def test_every_parameter_can_be_set(model: str, name: str, form: str | list[str]) -> None:
    value = form[-1] if isinstance(form, list) else SAMPLES[form]
    for given_to in {model, "tensorrt_llm_draft"} if model == "tensorrt_llm" else {model}:
        found = configs("draft_model", "A", "engines", triton_parameters={given_to: {name: value}})
        assert parameters(found[given_to])[name] == value


@pytest.mark.parametrize(
    ("model", "variables", "expected"),
    [
        ("tensorrt_llm", {"batching_strategy": "V1"}, 'key: "gpt_model_type" value { string_value: "V1" }'),
        ("tensorrt_llm", {"logits_datatype": "TYPE_FP16"}, 'name: "context_logits" data_type: TYPE_FP16'),
        ("ensemble", {"logits_datatype": "TYPE_FP16"}, 'name: "context_logits" data_type: TYPE_FP16'),
        (
            "tensorrt_llm_bls",
            {"prompt_embedding_table_data_type": "TYPE_BF16"},
            'name: "prompt_embedding_table" data_type: TYPE_BF16',
        ),
        (
            "tensorrt_llm",
            {"encoder_input_features_data_type": "TYPE_FP32"},
            'name: "encoder_input_features" data_type: TYPE_FP32',
        ),
        ("tensorrt_llm", {"decoupled_mode": "False"}, "model_transaction_policy { }"),
        ("tensorrt_llm", {"triton_max_batch_size": "17"}, "max_batch_size: 17"),
        ("tensorrt_llm", {"max_queue_size": "9"}, "max_queue_size: 9"),
        ("preprocessing", {"max_queue_delay_microseconds": "50"}, "max_queue_delay_microseconds: 50"),
        ("preprocessing", {"preprocessing_instance_count": "3"}, "count: 3"),
        ("postprocessing", {"postprocessing_instance_count": "2"}, "count: 2"),
        ("tensorrt_llm_bls", {"bls_instance_count": "4"}, "count: 4"),
    ],
)
def test_template_variables_can_be_set_too(model: str, variables: dict[str, str], expected: str) -> None:
    before, after = (
        text_format.MessageToString(configs(triton_parameters=given)[model], as_one_line=True)
        for given in ({}, {model: variables})
    )
    assert expected in after
    assert expected not in before


@pytest.mark.parametrize(
    ("given_parameters", "told"),
    [
        ({"tensorrt_llm": {"decodng_mode": "medusa"}}, "did you mean decoding_mode"),
        ({"tensorrt_lm": {"max_beam_width": "1"}}, "did you mean tensorrt_llm"),
        ({"tensorrt_llm_draft": {"max_beam_width": "1"}}, "no such model"),
        ({"tensorrt_llm": {"max_beam_width": "${max_beam_width}"}}, "unfilled template variable"),
        ({"tensorrt_llm": {"max_beam_width": "one"}}, "whole number"),
        ({"tensorrt_llm": {"kv_cache_free_gpu_mem_fraction": "90"}}, "from 0 to 1"),
        ({"tensorrt_llm": {"medusa_choices": "[[0], [0, 0]]"}}, "braces"),
        ({"tensorrt_llm": {"decoding_mode": "draft_tokens_external"}}, "one of .*medusa"),
        ({"tensorrt_llm": {"gpu_device_ids": r"0\,1"}}, "semicolons"),
        ({"preprocessing": {"add_special_tokens": "yes"}}, "true or false"),
        ({"tensorrt_llm": {"triton_max_batch_size": "9" * 30}}, "from 0 to 2147483647"),
        ({"preprocessing": {"max_queue_size": "-1"}}, "from 0 to 2147483647"),
    ],
)
def test_mistakes_are_refused_with_what_would_be_right(given_parameters: Any, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        configs(triton_parameters=given_parameters)
