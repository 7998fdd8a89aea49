"""The `tensorrt_llm_bls` model in front of the LLM API: the text-level contract on NVIDIA's `llmapi` tensors.

A request's rows run side by side, each as a request of its own to `tensorrt_llm`, which takes one text. What comes
back is put into the contract's shapes, together with the tokens before it, so that `postprocessing` joins streamed
text without seams; as the first step of `ensemble` it sends tokens only.
"""

import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.serving.backend import (
    call_model,
    finish_calls,
    input_names,
    parameters,
    refuse,
    response,
    tensors,
)
from engine.serving.contract import PLACEHOLDERS, Tensors, is_blank
from engine.serving.life import Life, refuse_when_stopping
from engine.serving.request_names import refuse_unknown
from engine.serving.wiring import GENERATION_TO_POSTPROCESSING, TO_LLMAPI

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
Arrays = dict[str, NDArray[Any]]

# Tensors that say nothing else than what happens anyway; every other one that the LLM API lacks is refused.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "beam_width": (0, 1),
    "num_return_sequences": (0, 1),
    "length_penalty": (0, 1),
    "return_context_logits": (0,),
    "return_generation_logits": (0,),
    "use_draft_logits": (0,),
    "pad_id": (),
    "exclude_input_in_output": (0, 1),
    "return_num_input_tokens": (0, 1),
    "return_num_output_tokens": (0, 1),
}
_COUNTS = {
    "kv_cache_alloc_new_blocks": "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks": "kv_cache_reused_block",
    "kv_cache_alloc_total_blocks": "kv_cache_alloc_total_blocks",
    "total_accepted_draft_tokens": "total_accepted_draft_tokens",
    "total_draft_tokens": "total_draft_tokens",
    "num_input_tokens": "num_input_tokens",
    "num_output_tokens": "num_output_tokens",
}
_TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")
_WANTED = (
    *("text_cut", "output_ids", "input_ids", "is_final", "cumulative_logprob", "output_log_probs", "error"),
    *("acceptance_rate", "acceptance_source"),
    *(*_COUNTS.values(), *_TIMES),
)


class LlmApiBlsModel:
    """The contract's text-level model on one that is called with `sampling_param_*`."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read the generation model's name, the number of requests to serve at once, and whether prompts are echoed."""
        settings = parameters(arguments)
        self._generation = settings["tensorrt_llm_model_name"]
        self._exclude_input = settings["exclude_input_in_output"] == "true"
        self._always_drafts = settings.get("always_drafts") == "true"
        self._inputs = input_names(arguments)
        self._pool = ThreadPoolExecutor(int(settings["max_requests"]), thread_name_prefix="bls")
        self._rows: dict[int, list[str]] = {}
        self._life = Life(arguments)

    def execute(self, requests: list[Any]) -> None:
        """Start the requests; their responses follow from the pool's threads."""
        for request in requests:
            self._pool.submit(self._serve, request, request.get_response_sender())

    def finalize(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown(cancel_futures=True)
        finish_calls()
        self._life.end()

    def _serve(self, request: Any, sender: Any) -> None:
        begun = ended = False
        try:
            names = request.requested_output_names()
            for outputs, ended in self._responses(request, sender):
                # An end of its own would not reach clients that have not asked for empty responses, and some of them
                # wait for it (LlamaIndex's connector).
                sender.send(response(outputs, names), flags=_FINAL if ended else 0)
                begun = True
            if not ended:
                sender.send(flags=_FINAL)
        except Exception as error:  # nobody else would tell the client
            if ended:
                raise
            refuse(sender, error, begun=begun)

    def _responses(self, request: Any, sender: Any) -> Iterator[tuple[Arrays, bool]]:
        """The responses, and of each whether it is the last one."""
        inputs, names = tensors(request), request.requested_output_names()
        if "stop" in inputs and inputs["stop"].any():
            self._stop(int(np.ravel(inputs["generation_handle"])[0]))
            return
        refuse_when_stopping()
        refuse_unknown(request.parameters(), self._inputs)
        _refuse_unsupported(inputs)
        if self._always_drafts and (np.ravel(inputs.get("num_draft_tokens", -1)) == 0).any():
            raise RequestError(
                "num_draft_tokens is 0, but this engine cannot leave speculation out for a single request; leave it "
                "out, or ask a deployment without speculation"
            )
        handle = secrets.randbits(64)
        calls = [_Row(inputs, row, secrets.token_hex(16)) for row in range(len(inputs["text_input"]))]
        exclude = bool(np.ravel(inputs.get("exclude_input_in_output", [self._exclude_input]))[0])
        self._rows[handle] = [call.identity for call in calls]
        running = len(calls)
        try:
            for row, received in _side_by_side(calls, self._generation):
                if sender.is_cancelled():
                    self._stop(handle)
                    continue
                outputs = calls[row].outputs(received, exclude)
                outputs["generation_handle"] = np.array([[handle]], np.uint64)
                if "text_output" in names:
                    outputs["text_output"] = _text(outputs)
                running -= bool(outputs["is_final"].all())
                yield outputs, not running
        finally:
            del self._rows[handle]

    def _stop(self, handle: int) -> None:
        """End the rows of a request; harmless if they have ended."""
        for identity in self._rows.get(handle, ()):
            stop = [_tensor("stop", np.array([True])), _tensor("text_input", np.array([b""], np.object_))]
            for _ in call_model(self._generation, stop, (), request_id=identity):
                pass


class _Row:
    """One row of a request, and what has come back for it."""

    def __init__(self, inputs: Tensors, row: int, identity: str) -> None:
        self.identity = identity
        self._row = row
        self._streaming = bool(np.ravel(inputs.get("stream", [False]))[0])
        self._tokens: list[int] = []
        self.inputs = [
            _tensor(inner, _row_of(inputs[public], row))
            for public, inner in TO_LLMAPI.items()
            if public in inputs
        ]
        self.inputs.append(_tensor("errors_as_output", np.array([True])))

    def outputs(self, received: Arrays, exclude_input: bool) -> Arrays:
        """A response in the contract's names and shapes: one row, one beam."""
        new = received["output_ids"].tolist()
        previous, self._tokens = self._tokens, self._tokens + new
        prefix = [] if exclude_input or self._streaming else received["input_ids"].tolist()
        scores = received.get("cumulative_logprob", np.zeros(1, np.float32))[:1]
        return {
            **PLACEHOLDERS,
            "output_ids": np.array([[[*prefix, *new]]], np.int32),
            "sequence_length": np.array([[len(prefix) + len(new)]], np.int32),
            "previous_output_ids": np.array([previous], np.int32),
            "is_final": received["is_final"][None],
            "text_cut": _figure(received, "text_cut", np.int32),
            "cum_log_probs": scores[None].astype(np.float32),
            "output_log_probs": received.get("output_log_probs", np.zeros(1, np.float32))[None, None],
            "batch_index": np.array([[self._row]], np.int32),
            **{name: _figure(received, inner, np.int32) for name, inner in _COUNTS.items()},
            **{name: _figure(received, name, np.int64) for name in _TIMES},
            "acceptance_rate": _figure(received, "acceptance_rate", np.float32),
            "acceptance_source": received.get("acceptance_source", np.array([b""], np.object_))[None],
        }


def _side_by_side(calls: Sequence[_Row], model: str) -> Iterator[tuple[int, Arrays]]:
    """Responses of all rows as they come, with their row.

    Raises:
        pb_utils.TritonModelException: a row was refused; carries its message.
    """
    if len(calls) == 1:
        yield from ((0, received) for received in _call(calls[0], model))
        return
    arrived: queue.Queue[tuple[int, Arrays | Exception | None]] = queue.Queue()
    for row, call in enumerate(calls):
        threading.Thread(target=_collect, args=(row, call, model, arrived), daemon=True).start()
    running = len(calls)
    while running:
        row, item = arrived.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            running -= 1
        else:
            yield row, item


def _collect(
    row: int, call: _Row, model: str, arrived: "queue.Queue[tuple[int, Arrays | Exception | None]]"
) -> None:
    try:
        for received in _call(call, model):
            arrived.put((row, received))
        arrived.put((row, None))
    except Exception as error:
        arrived.put((row, error))


def _call(call: _Row, model: str) -> Iterator[Arrays]:
    for received in call_model(model, call.inputs, _WANTED, request_id=call.identity):
        arrays = {name: tensor.as_numpy() for name, tensor in received.items()}
        if "error" in arrays:
            raise pb_utils.TritonModelException(arrays["error"][0].decode())
        yield arrays


def _text(outputs: Arrays) -> NDArray[Any]:
    """The text of a response's tokens, by `postprocessing`."""
    named = [_tensor(inner, outputs[name]) for name, inner in GENERATION_TO_POSTPROCESSING.items()]
    answer = next(call_model("postprocessing", named, ("OUTPUT",), decoupled=False))
    text: NDArray[Any] = answer["OUTPUT"].as_numpy()
    return text


def _refuse_unsupported(inputs: Tensors) -> None:
    for name, value in inputs.items():
        if name in TO_LLMAPI:
            continue
        allowed = _NEUTRAL.get(name)
        if allowed is None and not is_blank(value):
            raise RequestError(f"{name} is not supported on the LLM API; leave it out")
        if allowed and not np.isin(value, allowed).all():
            choices = " or ".join(f"{choice:g}" for choice in allowed)
            raise RequestError(f"{name} is {np.ravel(value)[0]}; the LLM API supports only {choices}")


def _row_of(value: NDArray[Any], row: int) -> NDArray[Any]:
    """One row's part, 1-D; a scalar tensor has lost its last axis on the way, and word lists may be there once."""
    taken: NDArray[Any] = np.atleast_1d(value[min(row, len(value) - 1)])
    return taken


def _figure(received: Arrays, name: str, kind: type[np.generic]) -> NDArray[Any]:
    return np.array([received.get(name, [0])], kind)


def _tensor(name: str, value: NDArray[Any]) -> Any:
    if name == "sampling_param_logprobs":  # a flag in the contract, a count in the LLM API
        value = value.astype(np.int32)
    return pb_utils.Tensor(name, np.ascontiguousarray(value))
