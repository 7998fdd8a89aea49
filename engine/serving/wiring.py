"""How the text-level tensors of `ensemble` and `tensorrt_llm_bls` map to those of the models behind them.

One table for both: `build.repository` turns it into the ensemble's maps, `engine.serving.bls` follows it at run
time. Public name first.
"""

from collections.abc import Mapping

TO_PREPROCESSING: Mapping[str, str] = {
    "text_input": "QUERY",
    "decoder_text_input": "DECODER_QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
    "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
    "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
}

PREPROCESSING_TO_GENERATION: Mapping[str, str] = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "BAD_WORDS_IDS": "bad_words_list",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}
TOKENS_OF_STOP_WORDS: Mapping[str, str] = {"STOP_WORDS_IDS": "stop_words_list"}
"""For TensorRT-LLM's engines, which look for tokens; the embedded engine takes the words as they are."""
OPTIONAL_TO_GENERATION: Mapping[str, str] = {"EMBEDDING_BIAS": "embedding_bias"}
"""Outputs of `preprocessing` that are there for some requests only, for which an ensemble has no place."""

_SAME_NAME = (
    *(
        "temperature",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "min_tokens",
        "min_length",
    ),
    *(
        "seed",
        "random_seed",
        "beam_width",
        "num_return_sequences",
        "exclude_input_in_output",
        "num_draft_tokens",
    ),
    *("return_log_probs", "return_context_logits", "return_generation_logits", "return_perf_metrics"),
    *("return_num_input_tokens", "return_num_output_tokens", "prompt_embedding_table", "prompt_vocab_size"),
    *("lora_task_id", "lora_weights", "lora_config", "guided_decoding_guide_type", "guided_decoding_guide"),
    *("stop_words", "cache_salt"),
)
TO_GENERATION: Mapping[str, str] = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
    **{name: name for name in _SAME_NAME},
}

TO_LLMAPI: Mapping[str, str] = {
    "text_input": "text_input",
    "stream": "streaming",
    "stop_words": "sampling_param_stop",
    "bad_words": "sampling_param_bad",
    "return_log_probs": "sampling_param_logprobs",
    "random_seed": "sampling_param_seed",
    "min_length": "sampling_param_min_tokens",
    "guided_decoding_guide_type": "guided_decoding_guide_type",
    "guided_decoding_guide": "guided_decoding_guide",
    "cache_salt": "cache_salt",
    **{
        name: f"sampling_param_{name}"
        for name in (
            *("max_tokens", "temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty"),
            *("repetition_penalty", "min_tokens", "seed", "end_id", "return_perf_metrics"),
        )
    },
}
"""Text-level tensors to those of the `llmapi` model, which takes text itself."""

GENERATION_TO_POSTPROCESSING: Mapping[str, str] = {
    "output_ids": "TOKENS_BATCH",
    "sequence_length": "SEQUENCE_LENGTH",
    "previous_output_ids": "PREVIOUS_TOKENS",
    "is_final": "IS_FINAL",
    "text_cut": "TEXT_CUT",
    "generation_handle": "GENERATION_HANDLE",
}

GENERATION_OUTPUTS = (
    *(
        "cum_log_probs",
        "output_log_probs",
        "context_logits",
        "generation_logits",
        "batch_index",
        "sequence_index",
    ),
    *("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks", "kv_cache_alloc_total_blocks"),
    *("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns"),
    *(
        "acceptance_rate",
        "total_accepted_draft_tokens",
        "total_draft_tokens",
        "num_input_tokens",
        "num_output_tokens",
    ),
    "output_ids",
)
"""Outputs of `tensorrt_llm` that are public under the same name."""
