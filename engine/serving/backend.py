"""What all our Triton models share: reading a request's tensors, answering, and refusing.

Runs inside Triton's Python backend only, which provides `triton_python_backend_utils`.
"""

import json
from collections.abc import Iterable, Mapping
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
    """A response that says what is wrong, with the status that clients tell causes apart by."""
    code = pb_utils.TritonError.INTERNAL
    if isinstance(error, QueueFullError):
        code = pb_utils.TritonError.UNAVAILABLE
    elif isinstance(error, RequestError):
        code = pb_utils.TritonError.INVALID_ARG
    message = str(error) if isinstance(error, RequestError) else f"{type(error).__name__}: {error}"
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
