"""Tensors of the `tensorrt_llm` model to generation requests, and outputs back to tensors.

Names, types and shapes are those of NVIDIA's `inflight_batcher_llm` (`model_repo/contract.json`). A parameter that
the embedded engine does not have is refused by name unless it says what the engine does anyway, so nobody gets
an answer to another question than the one that was asked.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.outputs import RequestMetrics, RequestOutput
from engine.request import GenerationRequest, SamplingParams
from engine.serving.distribution import sampling_params
from engine.serving.text import decode_prompt, decode_words
from engine.stopping import StopWords, Text, check_words

Tensors = Mapping[str, NDArray[Any]]

# Parameters with the one value (or the two) that the embedded engine honours.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "beam_width": (0, 1),
    "num_return_sequences": (0, 1),
    "repetition_penalty": (0, 1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "len_penalty": (0, 1),
    "early_stopping": (0,),
    "beam_search_diversity_rate": (0,),
    "runtime_top_p_min": (0,),
    "runtime_top_p_decay": (0, 1),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
}
# Tensors that must be absent or hold nothing.
_REFUSED = (
    *("bad_words_list", "embedding_bias", "draft_logits", "draft_acceptance_threshold", "decoder_input_ids"),
    *("prompt_embedding_table", "lora_task_id", "lora_weights", "lora_config", "encoder_input_features"),
    *("guided_decoding_guide_type", "guided_decoding_guide", "context_phase_params"),
    *("encoder_output_lengths", "cross_attention_mask", "skip_cross_attn_blocks", "prompt_table_extra_ids"),
    *("mrope_rotary_cos_sin", "mrope_position_deltas"),
    *("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size"),
)
_PADDING = -1  # NVIDIA's, of word lists
# Outputs of the contract that this engine has nothing to say about, filled as NVIDIA's backend fills them. Leaving
# them out is no choice: perf_analyzer reads every output that is declared, sent or not, and exports broken JSON.
PLACEHOLDERS: Tensors = {
    "sequence_index": np.zeros((1, 1), np.int32),
    "context_logits": np.zeros((1, 1, 1), np.float32),
    "generation_logits": np.zeros((1, 1, 1, 1), np.float32),
}


class GenerationCall:
    """One Triton request to `tensorrt_llm`: one generation per row of its batch, and how to answer."""

    def __init__(
        self,
        tensors: Tensors,
        default_end_ids: frozenset[int],
        exclude_input: bool,
        text: Text | None = None,
    ) -> None:
        """Take in all tensors, and check the values of those that requests are made of.

        Args:
            tensors: of the request.
            default_end_ids: end tokens of requests that name none.
            exclude_input: whether to answer without the prompt where a request does not say.
            text: how tokens become text, in which stop words are looked for.

        Raises:
            RequestError: names the tensor, what is wrong, and what would be right.
        """
        lengths = np.atleast_1d(_required(tensors, "input_lengths")).ravel()
        prompts = np.atleast_2d(_required(tensors, "input_ids"))
        if len(lengths) != len(prompts):
            raise RequestError(
                f"input_ids has {len(prompts)} rows but input_lengths {len(lengths)}; one length a row"
            )
        self.streaming = bool(_scalar(tensors, "streaming", 0))
        self.return_log_probs = bool(_scalar(tensors, "return_log_probs", 0))
        self.return_metrics = bool(_scalar(tensors, "return_perf_metrics", 0))
        self.exclude_input = bool(_scalar(tensors, "exclude_input_in_output", int(exclude_input)))
        end_id = int(_scalar(tensors, "end_id", _PADDING))
        self._text = text
        self._end_ids = frozenset({end_id}) if end_id >= 0 else default_end_ids
        self.requests = [
            self._request(tensors, prompts[row], int(lengths[row]), row) for row in range(len(prompts))
        ]

    def _request(self, tensors: Tensors, prompt: NDArray[Any], length: int, row: int) -> GenerationRequest:
        if not 0 <= length <= len(prompt):
            raise RequestError(
                f"input_lengths is {length}; it must lie in 1..{len(prompt)}, the width of input_ids"
            )
        draft_length = int(_scalar(tensors, "num_draft_tokens", -1, row))
        max_tokens = int(_scalar(tensors, "request_output_len", None, row))
        min_tokens = max(int(_scalar(tensors, name, 0, row)) for name in ("min_tokens", "min_length"))
        if draft_length < 0 and "num_draft_tokens" in tensors:
            raise RequestError(f"num_draft_tokens is {draft_length}; it must be 0 (speculation off) or more")
        draft = _given_draft(tensors, row)
        return GenerationRequest(
            prompt=tuple(prompt[:length].tolist()),
            max_tokens=max_tokens,
            sampling=read_sampling(tensors, row),
            stop_sequences=_words(tensors.get("stop_words_list"), row),
            end_ids=self._end_ids,
            min_tokens=min_tokens,
            draft_length=draft_length if draft_length >= 0 else None,
            return_log_probs=self.return_log_probs,
            draft=draft,
            continued=int(_scalar(tensors, "continued_tokens", 0, row)),
            stop_words=self._stop_words(tensors, row),
            cache_salt=read_text(tensors, "cache_salt", row),
        )

    def _stop_words(self, tensors: Tensors, row: int) -> StopWords | None:
        words = decode_words(tensors.get("stop_words"), row, "stop_words")
        if words and self._text is None:
            raise RequestError("stop_words are text, and this model has no tokenizer; give stop_words_list")
        return StopWords(words, self._text) if words and self._text else None


class Answer:
    """Collects the outputs of one generation and makes the tensors of its responses."""

    def __init__(self, call: GenerationCall, row: int) -> None:
        self._call = call
        self._row = row
        self._prefix = () if call.exclude_input or call.streaming else call.requests[row].prompt
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._sent = 0

    def add(self, output: RequestOutput) -> dict[str, NDArray[Any]] | None:
        """Take in an output; the response that is due now, if one is."""
        self._tokens.extend(output.tokens)
        self._log_probs.extend(output.log_probs)
        if not output.finish_reason and not self._call.streaming:
            return None
        first, self._sent = self._sent, len(self._tokens)
        tokens = np.array([[*self._prefix, *self._tokens[first:]]], np.int32)
        log_probs = np.array([[self._log_probs[first:] or [0.0]]], np.float32)
        return {
            "output_ids": tokens[:, None, :],
            "sequence_length": np.array([[tokens.shape[1]]], np.int32),
            "previous_output_ids": np.array([self._tokens[:first]], np.int32),
            "is_final": np.array([[output.finish_reason is not None]]),
            "text_cut": np.array([[output.text_cut]], np.int32),
            "cum_log_probs": np.array([[math.fsum(self._log_probs)]], np.float32),
            "output_log_probs": log_probs,
            "batch_index": np.array([[self._row]], np.int32),
            **PLACEHOLDERS,
            **_metric_tensors(
                output.metrics, real=self._call.return_metrics and output.finish_reason is not None
            ),
        }


def _metric_tensors(metrics: RequestMetrics, *, real: bool) -> dict[str, NDArray[Any]]:
    """Performance outputs; zero unless asked for and final, as NVIDIA's backend fills them."""
    counts = {
        "kv_cache_alloc_new_blocks": metrics.kv_new_blocks,
        "kv_cache_reused_blocks": metrics.kv_reused_blocks,
        "kv_cache_alloc_total_blocks": metrics.kv_new_blocks + metrics.kv_reused_blocks,
        "total_accepted_draft_tokens": metrics.total_accepted_draft_tokens,
        "total_draft_tokens": metrics.total_draft_tokens,
    }
    times = {
        "arrival_time_ns": metrics.arrival_ns,
        "first_scheduled_time_ns": metrics.first_scheduled_ns,
        "first_token_time_ns": metrics.first_token_ns,
        "last_token_time_ns": metrics.last_token_ns,
    }
    return {
        **{name: np.array([[value * real]], np.int32) for name, value in counts.items()},
        **{name: np.array([[value * real]], np.int64) for name, value in times.items()},
        "acceptance_rate": np.array([[(metrics.acceptance_rate or 0.0) * real]], np.float32),
        "num_input_tokens": np.array([[metrics.num_input_tokens]], np.int32),
        "num_output_tokens": np.array([[metrics.num_output_tokens]], np.int32),
    }


def read_sampling(tensors: Tensors, row: int = 0) -> SamplingParams:
    """How a row of a request to `tensorrt_llm` is to be sampled.

    Raises:
        RequestError: a value is out of range.
    """
    seed = tensors.get("seed", tensors.get("random_seed"))
    said = {
        name: _scalar(tensors, name, None, row) if name in tensors else None
        for name in ("temperature", "runtime_top_k", "runtime_top_p")
    }
    return sampling_params(
        temperature=said["temperature"],
        top_k=said["runtime_top_k"],
        top_p=said["runtime_top_p"],
        seed=None if seed is None else int(np.ravel(seed)[min(row, seed.size - 1)]),
    )


def refuse_unsupported(
    tensors: Tensors,
    who: str = "the embedded engine",
    neutral: Mapping[str, tuple[float, ...]] = _NEUTRAL,
    refused: Sequence[str] = _REFUSED,
) -> None:
    """Refuse tensors with which `who` would answer another question than the one that was asked.

    Args:
        tensors: of the request.
        who: named in the refusal.
        neutral: tensors with the values that may be asked for.
        refused: tensors that must be absent or hold nothing.

    Raises:
        RequestError: names the tensor.
    """
    for name, allowed in neutral.items():
        if name in tensors and not np.isin(tensors[name], allowed).all():
            given = ", ".join(str(value) for value in np.ravel(tensors[name])[:4])
            choices = " or ".join(f"{value:g}" for value in allowed)
            raise RequestError(f"{name} is {given}; {who} supports only {choices}")
    for name in refused:
        if name in tensors and not is_blank(tensors[name]):
            raise RequestError(f"{name} is not supported by {who}; leave it out")


def is_blank(value: NDArray[Any]) -> bool:
    """Nothing, or only what NVIDIA's preprocessing pads with (0 and -1)."""
    if value.dtype == object:
        return not any(value.ravel())
    return bool(((value == 0) | (value == _PADDING)).all())


def _required(tensors: Tensors, name: str) -> NDArray[Any]:
    if name not in tensors:
        raise RequestError(f"{name} is missing")
    return tensors[name]


def _scalar(tensors: Tensors, name: str, default: float | None, row: int = 0) -> float:
    if name not in tensors:
        if default is None:
            raise RequestError(f"{name} is missing")
        return default
    values = np.ravel(tensors[name])
    if not values.size:
        raise RequestError(f"{name} is empty; it must hold one value")
    value = values[min(row, values.size - 1)].item()
    if not math.isfinite(value):
        raise RequestError(f"{name} is {value}; it must be a finite number")
    return float(value) if isinstance(value, float) else int(value)


def read_text(tensors: Tensors, name: str, row: int = 0) -> str:
    """A text tensor's value for a row; empty if it is not there.

    Raises:
        RequestError: it is not UTF-8.
    """
    values = np.ravel(tensors.get(name, np.array([], np.object_)))
    return decode_prompt(values[min(row, values.size - 1)], name) if values.size else ""


def _given_draft(tensors: Tensors, row: int) -> tuple[int, ...]:
    """The row's draft, without the padding behind it."""
    drafts = np.atleast_2d(tensors.get("draft_input_ids", np.zeros((1, 0), np.int32)))
    tokens = drafts[min(row, len(drafts) - 1)].tolist() if len(drafts) else []
    while tokens and tokens[-1] == _PADDING:
        tokens.pop()
    return tuple(tokens)


def _words(tensor: NDArray[Any] | None, row: int) -> tuple[tuple[int, ...], ...]:
    """Read a word list: [2, n], the words' tokens one after another above the end offset of each word."""
    if tensor is None or not tensor.size:
        return ()
    lists = tensor if tensor.ndim == 3 else tensor[None]
    if lists.ndim != 3 or lists.shape[1] != 2:
        raise RequestError(f"stop_words_list has shape {list(tensor.shape)}; it must be [2, n] per request")
    tokens, offsets = lists[min(row, len(lists) - 1)]
    ends = offsets[offsets > 0].tolist()
    check_words([()] * len(ends), "stop_words_list")
    words, start = [], 0
    for end in ends:
        if not start < end <= len(tokens):
            raise RequestError(f"stop_words_list: offset {end} must lie in {start + 1}..{len(tokens)}")
        words.append(tuple(tokens[start:end].tolist()))
        start = end
    check_words(words, "stop_words_list", "tokens")
    return tuple(words)
