"""Results of TensorRT-LLM's LLM API to the tensors of the `llmapi` model, in the types that are declared.

NVIDIA's `llmapi` model sends every figure as text, whatever its configuration declares; here they are numbers.

Where the speculation figures come from: releases before TensorRT-LLM pull request #17082 (all Triton images up to
26.07) report zeros on the PyTorch backend, although `avg_decoded_tokens_per_iter` is right. Then accepted drafts
are counted from it (tokens less iterations), and drafted tokens are taken as the full draft length in every
iteration but the first one, which is the most there can have been. The output `acceptance_source` says which it was.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.serving.llmapi_request import LlmApiRequest

REPORTED = "tensorrt_llm"
DERIVED = "avg_decoded_tokens_per_iter"
UNKNOWN = "none"

_KV = {
    "kv_cache_reused_block": ("num_reused_blocks", np.int32),
    "kv_cache_missed_block": ("num_missed_blocks", np.int32),
    "kv_cache_alloc_new_blocks": ("num_new_allocated_blocks", np.int32),
    "kv_cache_alloc_total_blocks": ("num_total_allocated_blocks", np.int32),
    "kv_cache_hit_rate": ("kv_cache_hit_rate", np.float32),
}
_TIMES = {
    "arrival_time_ns": "arrival_time",
    "first_scheduled_time_ns": "first_scheduled_time",
    "first_token_time_ns": "first_token_time",
    "last_token_time_ns": "last_token_time",
}

Arrays = dict[str, NDArray[Any]]


class LlmApiAnswer:
    """Makes the responses of one generation; remembers how many tokens have been sent."""

    def __init__(self, request: LlmApiRequest, draft_length: int) -> None:
        """`draft_length` is the most tokens that are drafted in an iteration; 0 without speculation."""
        self.streaming = request.streaming
        self.errors_as_output = request.errors_as_output
        self._request = request
        self._draft_length = draft_length
        self._sent = 0

    def tensors(self, result: Any) -> Arrays:
        """The response to a `RequestOutput`: text so far, tokens since the last one, and what was asked for."""
        output = result.outputs[0]
        tokens = list(output.token_ids)
        # Stop words are cut off the end once they are complete, so the last result may be the shorter one.
        new, self._sent = tokens[self._sent :], max(self._sent, len(tokens))
        arrays: Arrays = {
            "text_output": _texts([item.text for item in result.outputs]),
            "output_ids": np.array(new, np.int32),
            "input_ids": np.array(list(result.prompt_token_ids), np.int32),
            "num_input_tokens": np.array([len(result.prompt_token_ids)], np.int32),
            "num_output_tokens": np.array([len(tokens)], np.int32),
            "is_final": np.array([bool(result.finished)]),
            "text_cut": np.array([getattr(result, "text_cut", 0)], np.int32),
        }
        if "logprobs" in self._request.sampling:
            log_probs = log_probs_of(output)
            arrays["output_log_probs"] = np.array(log_probs[len(tokens) - len(new) :], np.float32)
            arrays["cumulative_logprob"] = np.array([math.fsum(log_probs)], np.float32)
        for name in self._request.returned:
            values = [getattr(item, name) for item in result.outputs]
            if name == "cumulative_logprob":
                arrays[name] = np.array([np.nan if value is None else value for value in values], np.float32)
            else:
                arrays[name] = _texts(["" if value is None else str(value) for value in values])
        if self._request.return_metrics and result.finished:
            arrays |= self._metrics(result, len(tokens))
        return arrays

    def failure(self, message: str) -> Arrays:
        """The response that tells a failure to a caller within the server."""
        return {"error": _texts([message])}

    def _metrics(self, result: Any, tokens: int) -> Arrays:
        metrics = getattr(result.outputs[0], "request_perf_metrics", None)
        cache = getattr(metrics, "kv_cache_metrics", None)
        timing = getattr(metrics, "timing_metrics", None)
        return {
            **{name: np.array([getattr(cache, field, 0)], kind) for name, (field, kind) in _KV.items()},
            **{name: np.array([_nanoseconds(timing, field)], np.int64) for name, field in _TIMES.items()},
            **speculation_figures(
                getattr(metrics, "speculative_decoding", None),
                getattr(result, "avg_decoded_tokens_per_iter", None),
                tokens,
                self._draft_length,
            ),
        }


def log_probs_of(output: Any) -> list[float]:
    """Natural logarithms of the tokens' probabilities; the LLM API gives for each a mapping by token, or a number."""
    found = []
    for token, entry in zip(output.token_ids, output.logprobs or (), strict=False):
        chosen: Any = entry[token] if isinstance(entry, Mapping) else entry
        found.append(float(getattr(chosen, "logprob", chosen)))
    return found


def speculation_figures(
    reported: Any, tokens_per_iteration: float | None, tokens: int, draft_length: int
) -> Arrays:
    """Acceptance of one request, reported or counted (see above); all zero where nothing is drafted.

    Args:
        reported: `request_perf_metrics.speculative_decoding`, or None.
        tokens_per_iteration: `avg_decoded_tokens_per_iter`, or None.
        tokens: output tokens of the request.
        draft_length: most tokens drafted in an iteration.
    """
    drafted = int(getattr(reported, "total_draft_tokens", 0) or 0)
    accepted = int(getattr(reported, "total_accepted_draft_tokens", 0) or 0)
    source = REPORTED if drafted else UNKNOWN
    if not drafted and draft_length and tokens_per_iteration:
        iterations = max(1, round(tokens / tokens_per_iteration))
        drafted = draft_length * (iterations - 1)
        accepted = min(max(0, tokens - iterations), drafted)
        source = DERIVED
    return {
        "acceptance_rate": np.array([accepted / drafted if drafted else 0.0], np.float32),
        "total_accepted_draft_tokens": np.array([accepted], np.int32),
        "total_draft_tokens": np.array([drafted], np.int32),
        "acceptance_source": _texts([source]),
    }


def _nanoseconds(timing: Any, field: str) -> int:
    """A time since the start of the clock: a timedelta (the bindings' time points), or seconds."""
    value = getattr(timing, field, None)
    if value is None:
        return 0
    if hasattr(value, "total_seconds"):
        return int((value.days * 86_400 + value.seconds) * 1_000_000_000 + value.microseconds * 1_000)
    return round(float(value) * 1e9)


def _texts(values: list[str]) -> NDArray[np.object_]:
    return np.array([value.encode("utf-8") for value in values], dtype=np.object_)


def draft_length_of(arguments: Mapping[str, Any]) -> int:
    """Most tokens drafted in an iteration, from the arguments of `LLM`; 0 without speculation."""
    config = arguments.get("speculative_config") or {}
    return int(config.get("max_draft_len") or config.get("num_nextn_predict_layers") or 0)
