"""Flags of the command-line tools of TensorRT-LLM 1.2.1 that a build calls: what exists, and what no longer does.

Data, so that every command can be checked before it is run. A flag's value is a tuple of choices, `ANY` (free), or
`SWITCH` (takes none). Sources, all in NVIDIA/TensorRT-LLM: `tensorrt_llm/commands/build.py` with
`tensorrt_llm/plugin/plugin.py` (`cli_plugin_args`) of 1.1 and newer, `examples/models/core/*/convert_checkpoint.py`
at 368f8f2a (llama), 0df9aaf3 (qwen) and 10c1d594 (phi), `examples/quantization/quantize.py` at 059c97c1.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Value = tuple[str, ...]

ANY: Value = ("*",)
SWITCH: Value = ()

_TOGGLE = ("enable", "disable")
_TYPES = ("auto", "float16", "float32", "bfloat16", "int32", "disable")
_WEIGHTS = ("auto", "float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Tool:
    """One program and its flags, without their dashes."""

    name: str
    flags: Mapping[str, Value]


def _flags(any_value: str, switches: str = "", **choices: Value) -> Mapping[str, Value]:
    free = dict.fromkeys(any_value.split(), ANY)
    return MappingProxyType(free | dict.fromkeys(switches.split(), SWITCH) | choices)


TRTLLM_BUILD = Tool(
    "trtllm-build",
    _flags(
        "checkpoint_dir model_config build_config model_cls_file model_cls_name output_dir max_batch_size "
        "max_input_len max_seq_len max_decoder_seq_len max_beam_width max_num_tokens opt_num_tokens "
        "max_encoder_input_len max_prompt_embedding_table_size max_multimodal_len kv_cache_type "
        "input_timing_cache output_timing_cache workers log_level visualize_network lora_dir "
        "lora_target_modules max_lora_rank max_draft_len tokens_per_block",
        "strip_plan weight_sparsity weight_streaming fast_build enable_debug_output dry_run monitor_memory "
        "gather_context_logits gather_generation_logits gather_all_token_logits",
        profiling_verbosity=("layer_names_only", "detailed", "none"),
        logits_dtype=("float16", "float32"),
        lora_ckpt_source=("hf", "nemo"),
        speculative_decoding_mode=(
            "draft_tokens_external",
            "lookahead_decoding",
            "medusa",
            "explicit_draft_tokens",
            "eagle",
        ),
        **dict.fromkeys(
            (
                "bert_attention_plugin",
                "gpt_attention_plugin",
                "fp8_rowwise_gemm_plugin",
                "lora_plugin",
                "moe_plugin",
                "mamba_conv1d_plugin",
                "nccl_plugin",
            ),
            _TYPES,
        ),
        gemm_plugin=("auto", "float16", "float32", "bfloat16", "int32", "fp8", "nvfp4", "disable"),
        gemm_swiglu_plugin=("fp8", "disable"),
        low_latency_gemm_plugin=("fp8", "disable"),
        low_latency_gemm_swiglu_plugin=("fp8", "disable"),
        gemm_allreduce_plugin=("float16", "bfloat16", "disable"),
        **dict.fromkeys(
            (
                "dora_plugin",
                "context_fmha",
                "bert_context_fmha_fp32_acc",
                "remove_input_padding",
                "use_paged_context_fmha",
                "use_fp8_context_fmha",
                "fuse_fp4_quant",
                "multiple_profiles",
                "paged_state",
                "norm_quant_fusion",
                "reduce_fusion",
                "user_buffer",
                "use_fused_mlp",
                "pp_reduce_scatter",
            ),
            _TOGGLE,
        ),
    ),
)

# Flags that recipes for older releases still show, and what 1.2.1 has for them.
REMOVED_BUILD_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "paged_kv_cache": "kv_cache_type: paged, which is the default",
        "max_output_len": "max_seq_len (engine.max_sequence_length)",
        "use_gpt_attention_plugin": "gpt_attention_plugin",
        "use_inflight_batching": "nothing; paged KV cache and removed padding are the defaults",
        "use_custom_all_reduce": "nothing; chosen at run time",
        "multi_block_mode": "the run-time parameter multi_block_mode",
        "enable_xqa": "nothing; always on",
        "lookup_plugin": "nothing",
        "context_fmha_fp32_acc": "the run-time parameter enable_context_fmha_fp32_acc",
        "attention_qk_half_accumulation": "nothing",
        "use_context_fmha_for_generation": "nothing",
        "auto_parallel": "tensor_parallel and pipeline_parallel",
        "gpus_per_node": "nothing; it belonged to auto_parallel",
        "cluster_key": "nothing; it belonged to auto_parallel",
        "builder_opt": "nothing",
        "streamingllm": "nothing; trtllm-build refuses it since the KV cache slides",
    }
)

# Flags that the kit gives to trtllm-build itself, and where they come from.
OWN_BUILD_FLAGS: Mapping[str, str] = MappingProxyType(
    {
        "checkpoint_dir": "engine.workspace",
        "output_dir": "engine.workspace",
        "max_batch_size": "engine.max_batch_size",
        "max_input_len": "engine.max_input_length",
        "max_seq_len": "engine.max_sequence_length",
        "max_num_tokens": "engine.max_num_tokens",
        "workers": "engine.tensor_parallel and engine.pipeline_parallel",
        "use_paged_context_fmha": "the need of every drafter for it",
        "speculative_decoding_mode": "speculation.method",
        "max_draft_len": "the speculation section",
        "gather_generation_logits": "speculation.use_draft_logits",
    }
)

CONVERT_LLAMA = Tool(
    "examples/models/core/llama/convert_checkpoint.py",
    _flags(
        "model_dir meta_ckpt_dir tp_size pp_size cp_size moe_tp_size moe_ep_size vocab_size n_positions n_layer n_head "
        "n_kv_head n_embd inter_size multiple_of ffn_dim_multiplier rms_norm_eps calib_dataset calib_size "
        "calib_max_seq_length smoothquant quant_ckpt_path hidden_act rotary_base group_size output_dir workers "
        "moe_num_experts moe_top_k moe_renorm_mode log_level",
        "use_weight_only disable_weight_only_quant_plugin use_qserve per_channel per_token int8_kv_cache fp8_kv_cache "
        "use_fp8 use_nvfp4 use_fp8_rowwise use_meta_fp8_rowwise_recipe per_group load_by_shard load_model_on_cpu "
        "use_parallel_embedding save_config_only remove_duplicated_kv_heads",
        dtype=_WEIGHTS,
        weight_only_precision=("int8", "int4", "int8_gptq", "int4_gptq", "int4_awq"),
        embedding_sharding_dim=("0", "1"),
    ),
)

CONVERT_QWEN = Tool(
    "examples/models/core/qwen/convert_checkpoint.py",
    _flags(
        "model_dir tp_size pp_size cp_size moe_tp_size moe_ep_size calib_dataset smoothquant group_size "
        "output_dir workers",
        "use_weight_only disable_weight_only_quant_plugin per_channel per_token int8_kv_cache per_group "
        "load_model_on_cpu use_parallel_embedding",
        dtype=_WEIGHTS,
        weight_only_precision=("int8", "int4", "int4_gptq", "int8_gptq"),
        embedding_sharding_dim=("0", "1"),
    ),
)

CONVERT_PHI = Tool(
    "examples/models/core/phi/convert_checkpoint.py",
    _flags(
        "model_dir tp_size pp_size moe_tp_size moe_ep_size output_dir workers",
        "use_weight_only",
        dtype=_WEIGHTS,
        weight_only_precision=("int8", "int4"),
    ),
)

QUANTIZE = Tool(
    "examples/quantization/quantize.py",
    _flags(
        "model_dir nemo_ckpt_path calib_dataset calib_tp_size calib_pp_size seed tokenizer_max_seq_length batch_size "
        "calib_size calib_max_seq_length output_dir tp_size pp_size cp_size awq_block_size num_medusa_heads "
        "num_medusa_layers max_draft_len medusa_hidden_act medusa_model_dir autoq_format auto_quantize_bits",
        "quantize_lm_head quant_medusa_head",
        decoder_type=("gptnext", "llama"),
        device=("cuda", "cpu"),
        device_map=("auto", "sequential", "cpu", "gpu"),
        dtype=_WEIGHTS,
        qformat=("nvfp4", "fp8", "int8_sq", "int4_awq", "w4a8_awq", "int8_wo", "int4_wo", "full_prec"),
        kv_cache_dtype=("int8", "fp8"),
    ),
)


def problem_of(tool: Tool, flag: str, value: str | None) -> str | None:
    """What is wrong with a flag and its value (None: given without one), or None if the tool takes it."""
    if flag not in tool.flags:
        if tool is TRTLLM_BUILD and flag in REMOVED_BUILD_FLAGS:
            return f"{tool.name} has lost --{flag}; it has {REMOVED_BUILD_FLAGS[flag]}"
        near = difflib.get_close_matches(flag, tool.flags, n=1)
        return f"{tool.name} has no --{flag}" + (f", did you mean --{near[0]}?" if near else "")
    known = tool.flags[flag]
    if known == SWITCH:
        return None if value is None else f"--{flag} of {tool.name} takes no value (given: {value!r})"
    if value is None:
        return f"--{flag} of {tool.name} needs a value"
    if known != ANY and value not in known:
        return f"--{flag} of {tool.name} takes {', '.join(known)} (given: {value!r})"
    return None
