"""Tensors of the kit's Triton models: those of NVIDIA's contract and the optional ones that the kit adds.

The contract (`model_repo/contract.json`) holds the tensors of NVIDIA's `inflight_batcher_llm`.
"""

from collections.abc import Mapping

from build.triton.model_config import Tensor, Tensors, contract_tensors

DRAFT_MODEL = "tensorrt_llm_draft"
TEXT_MODELS = ("ensemble", "tensorrt_llm_bls")
"""The models that take text, which say which deployment they are."""

_TEXT_LEVEL: list[Tensor] = [
    {"name": "random_seed", "data_type": "TYPE_UINT64", "dims": [1], "optional": True},
    {"name": "min_length", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
    {"name": "num_draft_tokens", "data_type": "TYPE_INT32", "dims": [1], "optional": True},
]
CACHE_SALT: Tensor = {"name": "cache_salt", "data_type": "TYPE_STRING", "dims": [1], "optional": True}
"""Requests of one salt share KV cache; for engines that can part it, which compiled TensorRT-LLM engines cannot."""
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
