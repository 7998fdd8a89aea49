"""What all our Triton models share: reading a request's tensors, answering, and refusing.

Runs inside Triton's Python backend only, which provides `triton_python_backend_utils`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.request import QueueFullError, RequestError


def parameters(arguments: Mapping[str, str]) -> dict[str, str]:
    """Parameters of the model's config.pbtxt."""
    config = json.loads(arguments["model_config"])
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def directory(arguments: Mapping[str, str], name: str) -> Path:
    """A parameter that is a path."""
    return Path(parameters(arguments)[name])


def tensors(request: Any) -> dict[str, NDArray[Any]]:
    """All inputs of a request as arrays."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def response(outputs: Mapping[str, NDArray[Any]], wanted: Iterable[str] = ()) -> Any:
    """A response with those outputs that are wanted (all if nothing is named)."""
    names = set(wanted) or outputs.keys()
    return pb_utils.InferenceResponse(
        [
            pb_utils.Tensor(name, np.ascontiguousarray(value))
            for name, value in outputs.items()
            if name in names
        ]
    )


def refusal(error: Exception) -> Any:
    """A response that says what is wrong.

    Status codes do not survive an ensemble, so clients tell causes apart by the words as well.
    """
    message, code = f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL
    if isinstance(error, QueueFullError):
        message, code = str(error), pb_utils.TritonError.UNAVAILABLE
    elif isinstance(error, RequestError):
        message, code = f"invalid request: {error}", pb_utils.TritonError.INVALID_ARG
    elif isinstance(error, CancelledError):
        message, code = "the request was cancelled", pb_utils.TritonError.CANCELLED
    elif isinstance(error, pb_utils.TritonModelException):
        message = str(error)  # another model's refusal, passed on word for word
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def refuse(sender: Any, error: Exception) -> None:
    """Answer a request of a decoupled model with an error and nothing else.

    The final flag goes with it: apart from it, tritonserver 2.51 may crash while it still writes the error.
    """
    sender.send(refusal(error), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def stop_generation(model: str, handle: NDArray[Any]) -> None:
    """End a running generation of `model`; `handle` came with its tokens. Harmless if it has ended."""
    values = {
        "stop": np.array([[True]]),
        "generation_handle": handle.reshape(1, 1),
        "input_lengths": np.array([[0]], np.int32),
        "request_output_len": np.array([[0]], np.int32),
    }
    for _ in call_model(model, [pb_utils.Tensor(name, value) for name, value in values.items()], ()):
        pass


def call_model(
    model: str, inputs: list[Any], outputs: Iterable[str], *, decoupled: bool = True
) -> Iterator[dict[str, Any]]:
    """Run another model of this server; its responses' tensors by name.

    Raises:
        pb_utils.TritonModelException: the model refused; carries its message.
    """
    request = pb_utils.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=list(dict.fromkeys(outputs))
    )
    for answer in request.exec(decoupled=True) if decoupled else [request.exec()]:
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
        if answer.output_tensors():
            yield {tensor.name(): tensor for tensor in answer.output_tensors()}
