"""One row of a `tensorrt_llm_bls` request, and the calls of `tensorrt_llm` that verify drafts for it.

A call carries all that is known, prompt and output, and a draft. The target answers with the accepted part of the
draft and one token of its own, keeps the KV cache for the next call, and ends: so do the embedded engine and
TensorRT-LLM's `draft_tokens_external` engines, which end a request that came with a draft after a single step
(`updateRequests` in `batch_manager/trtGptModelInflightBatching.cpp`). A call without a draft asks for one token.

What a call must not forget is what the earlier ones did. The embedded engine is told how many of the tokens are
output (`continued_tokens`) and goes on with the request's random numbers. TensorRT-LLM would begin them anew in
every call, and draw each token with the numbers of the first; so it gets another seed for every call, made from
the request's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gate import Gate
from engine.outputs import RequestMetrics
from engine.request import GenerationRequest
from engine.serving.calls import Caller, Tensors

_KV_BLOCKS = ("kv_cache_alloc_new_blocks", "kv_cache_reused_blocks")
_OUTPUTS = ("output_ids", "sequence_length", "output_log_probs", "first_scheduled_time_ns", *_KV_BLOCKS)
# Inputs that every call sets for itself, or that the loop of calls takes care of.
_OWN = (
    *("input_ids", "input_lengths", "request_output_len", "stop_words_list", "stop_words"),
    *("seed", "random_seed"),
    *("min_tokens", "min_length", "streaming", "num_draft_tokens", "return_num_input_tokens"),
    *("return_num_output_tokens", "exclude_input_in_output"),
)


def token_tensors(tokens: Sequence[int], most: int) -> dict[str, NDArray[Any]]:
    """Inputs of a call that goes on after `tokens` by at most `most`, and answers with those alone, at once."""
    return {
        "input_ids": np.array([tokens], np.int32),
        "input_lengths": np.array([[len(tokens)]], np.int32),
        "request_output_len": np.array([[most]], np.int32),
        "exclude_input_in_output": np.array([[True]]),
        "streaming": np.array([[False]]),
    }


def read_tokens(answer: Tensors) -> list[int]:
    """The tokens of a response, of its first beam and without padding."""
    length = int(answer["sequence_length"].ravel()[0])
    tokens: list[int] = answer["output_ids"][0, 0, :length].tolist()
    return tokens


@dataclass(slots=True)
class Row:
    """One generation: what was asked, and how far it is.

    Attributes:
        request: the row, checked.
        inputs: its tensors for `tensorrt_llm`, first axis of length 1.
        metrics: figures of all calls together.
        gate: what of the output may be given out.
        output: tokens that the target has emitted so far.
    """

    request: GenerationRequest
    inputs: Mapping[str, NDArray[Any]]
    metrics: RequestMetrics
    gate: Gate
    output: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow.

    Attributes:
        tokens: any number of them.
        logits: what they were drawn from, `[len(tokens), V]`, for acceptance by distribution; with fast logits one row
            that tells the target where to fetch them. None: a token is accepted if it is the target's own.
    """

    tokens: tuple[int, ...] = ()
    logits: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What a call answered."""

    tokens: list[int]
    log_probs: list[float]


class Target:
    """The model that verifies."""

    def __init__(self, model: str, caller: Caller, *, continues: bool, max_sequence_length: int = 0) -> None:
        """Verify by `model`.

        Args:
            model: its name.
            caller: who calls it.
            continues: whether it takes `continued_tokens`, as the embedded engine does.
            max_sequence_length: the limit of an engine of TensorRT-LLM; 0: none.
        """
        self._model, self._caller, self._continues = model, caller, continues
        self._max_sequence_length = max_sequence_length

    def room(self, row: Row) -> int:
        """Most tokens to draft, so that the answer is not cut short.

        TensorRT-LLM counts a draft twice, as draft and as output, and where prompt, output and draft of a call exceed
        the limit, it takes the excess off the output (`LlmRequest::validate` in batch_manager/llmRequest.cpp).
        """
        if not self._max_sequence_length:
            return row.request.max_tokens
        known = len(row.request.prompt) + len(row.output)
        return max(0, (self._max_sequence_length - known - 1) // 2)

    def verify(self, row: Row, draft: Draft, gone: Callable[[], bool]) -> Step:
        """One call after the row's output; nothing comes back if the client has gone.

        Raises:
            pb_utils.TritonModelException: the target refused.
        """
        tokens: list[int] = []
        log_probs: list[float] = []
        for answer in self._caller.call(self._model, self._inputs(row, draft), self._outputs(row), gone):
            tokens += read_tokens(answer)
            if row.request.return_log_probs:
                log_probs += answer["output_log_probs"].ravel()[: len(tokens)].tolist()
            _add_figures(row.metrics, answer)
        return Step(tokens, log_probs)

    def _inputs(self, row: Row, draft: Draft) -> dict[str, NDArray[Any]]:
        request, done = row.request, len(row.output)
        most = len(draft.tokens) + 1
        inputs = {name: value for name, value in row.inputs.items() if name not in _OWN}
        inputs |= token_tensors([*request.prompt, *row.output], most)
        if draft.tokens:
            inputs["draft_input_ids"] = np.array([draft.tokens], np.int32)
        if draft.logits is not None:
            inputs["draft_logits"] = draft.logits[None]
        if request.min_tokens > done:
            inputs["min_tokens"] = np.array([[min(most, request.min_tokens - done)]], np.int32)
        if self._continues:
            inputs["seed"] = np.array([[request.sampling.seed]], np.uint64)
            inputs["continued_tokens"] = np.array([[done]], np.int32)
            inputs["num_draft_tokens"] = np.array([[0]], np.int32)
        elif not request.sampling.greedy:
            numbers = np.random.SeedSequence([request.sampling.seed, done])
            inputs["seed"] = numbers.generate_state(1, np.uint64)[None]
        return inputs

    def _outputs(self, row: Row) -> list[str]:
        unwanted = () if row.request.return_log_probs else ("output_log_probs",)
        return [name for name in _OUTPUTS if name not in unwanted]


def _add_figures(metrics: RequestMetrics, answer: Tensors) -> None:
    new, reused = (int(answer[name].ravel()[0]) if name in answer else 0 for name in _KV_BLOCKS)
    metrics.kv_new_blocks += new
    metrics.kv_reused_blocks += reused
    if "first_scheduled_time_ns" in answer:
        scheduled = int(answer["first_scheduled_time_ns"].ravel()[0])
        metrics.first_scheduled_ns = metrics.first_scheduled_ns or scheduled
