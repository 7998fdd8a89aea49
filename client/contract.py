"""The served models' tensors: how a request is written in them and how a response is read.

Names and types are those of NVIDIA's `inflight_batcher_llm` models (`ensemble` for text, `tensorrt_llm` for
token ids) plus the kit's optional additions. A server refuses tensors it does not know, so optional ones
are sent only if the model declares them, which its metadata tells. This module knows no transport: gRPC and
HTTP share it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from client.errors import InvalidRequest
from client.options import SamplingOptions

Outputs = Mapping[str, list[Any]]
"""One response: the elements of each output tensor in row-major order, whatever its shape."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input: flat `values` of KServe type `datatype`, and the shape it is sent in."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a transport sends it."""

    model: str
    request_id: str
    tensors: tuple[Tensor, ...]
    options: SamplingOptions


@dataclass(frozen=True, slots=True)
class Declared:
    """One input as the model's metadata declares it."""

    datatype: str
    rank: int


# Option -> (tensor of `ensemble`, tensor of `tensorrt_llm`, type).
_TENSORS: dict[str, tuple[str, str, str]] = {
    "max_tokens": ("max_tokens", "request_output_len", "INT32"),
    "temperature": ("temperature", "temperature", "FP32"),
    "top_k": ("top_k", "runtime_top_k", "INT32"),
    "top_p": ("top_p", "runtime_top_p", "FP32"),
    "seed": ("seed", "seed", "UINT64"),
    "stop": ("stop_words", "", "BYTES"),
    "min_tokens": ("min_tokens", "min_tokens", "INT32"),
    "num_draft_tokens": ("num_draft_tokens", "num_draft_tokens", "INT32"),
    "cache_salt": ("cache_salt", "cache_salt", "BYTES"),
    "return_log_probs": ("return_log_probs", "return_log_probs", "BOOL"),
}
# Sent where the model declares them: what typed results are made of, and no prompt in the output.
_ALWAYS = (
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
    "exclude_input_in_output",
)


class _Inputs:
    """Collects the tensors of one request in the shapes that the model declares."""

    def __init__(self, model: str, declared: Mapping[str, Declared]) -> None:
        self._model = model
        self._declared = declared
        self.tensors: list[Tensor] = []

    def require(self, name: str, datatype: str, values: Sequence[Any], field: str) -> None:
        """Add a tensor that the request cannot do without; `field` is the argument it comes from."""
        if name not in self._declared:
            raise InvalidRequest(
                f"model {self._model!r} has no input {name!r}, so {field} cannot be sent to it", field=field
            )
        self.offer(name, datatype, values)

    def offer(self, name: str, datatype: str, values: Sequence[Any]) -> None:
        """Add a tensor if the model declares it.

        The contract's dims are 1-D; a model that batches (`max_batch_size` > 0) has one more in front.
        """
        if declared := self._declared.get(name):
            shape = (1,) * (declared.rank - 1) + (len(values),)
            self.tensors.append(Tensor(name, datatype, shape, values))


def text_request(
    model: str,
    declared: Mapping[str, Declared],
    prompt: str,
    options: SamplingOptions,
    *,
    request_id: str,
) -> Request:
    """A request to the text-level model (`ensemble`, `tensorrt_llm_bls`).

    Raises:
        InvalidRequest: an option was given that the model has no input for.
    """
    inputs = _Inputs(model, declared)
    inputs.require("text_input", "BYTES", [prompt], "prompt")
    _add_options(inputs, options, level=0)
    inputs.offer("stream", "BOOL", [True])
    return Request(model, request_id, tuple(inputs.tensors), options)


def token_request(
    model: str,
    declared: Mapping[str, Declared],
    ids: Sequence[int],
    end_id: int | None,
    options: SamplingOptions,
    *,
    request_id: str,
) -> Request:
    """A request to the token-level model (`tensorrt_llm`).

    Raises:
        InvalidRequest: an option was given that the model has no input for, or `stop`, which is text.
    """
    if options.get("stop"):
        raise InvalidRequest("stop strings need a tokenizer: use generate() or stream()", field="stop")
    inputs = _Inputs(model, declared)
    inputs.require("input_ids", "INT32", ids, "ids")
    inputs.require("input_lengths", "INT32", [len(ids)], "ids")
    if end_id is not None:
        inputs.require("end_id", "INT32", [int(end_id)], "end_id")
    _add_options(inputs, options, level=1)
    inputs.offer("streaming", "BOOL", [True])
    return Request(model, request_id, tuple(inputs.tensors), options)


def _add_options(inputs: _Inputs, options: SamplingOptions, level: int) -> None:
    """Add the options' tensors; `level` is 0 for the text model's names and 1 for the token model's."""

    def tensor_of(option: str) -> tuple[str, str]:
        return _TENSORS[option][level], _TENSORS[option][2]

    plain: dict[str, Any] = dict(options)
    for option, value in _distribution(plain).items():
        name, datatype = tensor_of(option)
        if value == plain.get(option):
            inputs.require(name, datatype, [value], option)
        else:
            inputs.offer(name, datatype, [value])
    for option in ("temperature", "top_k", "top_p"):
        plain.pop(option, None)
    for option, value in plain.items():
        values = list(value) if option == "stop" else [value]
        # An empty list and False are what absence means already.
        if values and value is not False:
            inputs.require(*tensor_of(option), values, option)
    for name in _ALWAYS:
        inputs.offer(name, "BOOL", [True])


def _distribution(options: dict[str, Any]) -> dict[str, Any]:
    """The tensors that say what to draw from, without leaning on a server's defaults.

    TensorRT-LLM takes a missing `top_k` for 1, which is greedy whatever the temperature, and older releases
    refuse temperature 0. So greedy is sent as top_k 1 alone, and sampling always with all three values.
    """
    if options["temperature"] == 0:
        return {"top_k": 1}
    return {
        "temperature": options["temperature"],
        "top_k": options.get("top_k", 0),
        "top_p": options.get("top_p", 1.0),
    }


def unknown_model(model: str, known: Sequence[str], request_id: str | None = None) -> InvalidRequest:
    """The error for a model name that the server does not have, with the names it has (none: it does not tell)."""
    close = difflib.get_close_matches(model, known, n=1)
    only = f", only: {', '.join(sorted(known))}" if known else ""
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return InvalidRequest(
        f"the server has no model {model!r}{only}{hint}",
        field="model",
        request_id=request_id,
    )


@dataclass(frozen=True, slots=True)
class Update:
    """What one response adds to a generation."""

    text: str
    tokens: tuple[int, ...] | None
    log_probs: tuple[float, ...] | None
    figures: Mapping[str, int]
    """The single-number outputs that results use, by tensor name."""


_FIGURES = (
    "num_input_tokens",
    "num_output_tokens",
    "total_draft_tokens",
    "total_accepted_draft_tokens",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "arrival_time_ns",
    "first_scheduled_time_ns",
    "first_token_time_ns",
    "last_token_time_ns",
)


def read_outputs(outputs: Outputs) -> Update:
    """Read one response: beam 1, sequence 1, tensors of any rank, any of them missing."""
    tokens = outputs.get("output_ids")
    # TensorRT-LLM pads `output_ids`; `sequence_length` says how many of them count.
    length = outputs.get("sequence_length")
    if tokens is not None and length:
        tokens = tokens[: length[0]]
    log_probs = outputs.get("output_log_probs")
    return Update(
        text="".join(outputs.get("text_output", ())[:1]),
        tokens=None if tokens is None else tuple(tokens),
        log_probs=None if log_probs is None else tuple(log_probs),
        figures={name: outputs[name][0] for name in _FIGURES if outputs.get(name)},
    )
