"""What all our Triton models share: reading a request's tensors, answering, and refusing.

Runs inside Triton's Python backend only, which provides `triton_python_backend_utils`.
"""

import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from engine.errors import QueueFullError, RequestError, StoppedError, StoppingError, TooLongError

_log = logging.getLogger(__name__)
_KEPT_SECONDS = 5.0  # the thread in question needs milliseconds


def parameters(arguments: Mapping[str, str]) -> dict[str, str]:
    """Parameters of the model's config.pbtxt."""
    config = json.loads(arguments["model_config"])
    return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}


def input_names(arguments: Mapping[str, str]) -> list[str]:
    """Inputs that the model's config.pbtxt declares."""
    return [tensor["name"] for tensor in json.loads(arguments["model_config"])["input"]]


def directory(arguments: Mapping[str, str], name: str) -> Path:
    """A parameter that is a path."""
    return Path(parameters(arguments)[name])


def directories(arguments: Mapping[str, str], name: str) -> dict[str, Path]:
    """A parameter that is a JSON object of paths."""
    return {key: Path(path) for key, path in json.loads(parameters(arguments)[name]).items()}


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
    """A response that says what is wrong."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(*told(error)))


def told(error: Exception) -> tuple[str, Any]:
    """What a client is told of an error: a message and a status code.

    Of a fault of our own it is told a number under which the server's log has it: its text may name files and what
    others have asked for. Triton's HTTP front end answers every error of a generation with status 400 (it reads the
    code after it has freed the error), so clients tell causes apart by the words as well.
    """
    codes = pb_utils.TritonError
    if isinstance(error, (QueueFullError, StoppingError)):
        return str(error), codes.UNAVAILABLE
    if isinstance(error, RequestError):
        return f"invalid request: {error}", codes.INVALID_ARG
    if isinstance(error, (StoppedError, TooLongError)):
        return str(error), codes.CANCELLED
    if isinstance(error, CancelledError):
        return "the request was cancelled", codes.CANCELLED
    if isinstance(error, pb_utils.TritonModelException):  # another model's refusal, passed on word for word
        return str(error), getattr(error, "code", codes.INTERNAL)
    number = secrets.token_hex(4)
    _log.error("internal error %s", number, exc_info=error)
    return f"internal error {number}; the server's log says more", codes.INTERNAL


def refuse(sender: Any, error: Exception, *, begun: bool = False) -> None:
    """End a request of a decoupled model with an error; `begun` says whether it has had responses.

    If not, the final flag goes with the error: apart from it, tritonserver 2.51 may crash while it still writes the
    error. After a response it must come apart: a caller within the server never sees an error that carries the final
    flag and is not the first.
    """
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    if not begun:
        sender.send(refusal(error), flags=final)
        return
    sender.send(refusal(error))
    sender.send(flags=final)


# Inputs that a model wants in every request, those that stop another one included.
_REQUIRED: Mapping[str, Mapping[str, NDArray[Any]]] = {
    "tensorrt_llm": {
        "input_lengths": np.array([[0]], np.int32),
        "request_output_len": np.array([[0]], np.int32),
    },
    "tensorrt_llm_bls": {
        "text_input": np.array([[b""]], np.object_),
        "max_tokens": np.array([[0]], np.int32),
    },
}


def stop_generation(model: str, handle: NDArray[Any]) -> None:
    """End a running generation of `model`; `handle` came with its tokens. Harmless if it has ended."""
    values = {
        "stop": np.array([[True]]),
        "generation_handle": handle.reshape(1, 1),
        **_REQUIRED[model],
    }
    for _ in call_model(model, as_tensors(values), ()):
        pass


def stop_request(model: str, request_id: str) -> None:
    """End the request to a model of the contract of `tensorrt_llm` that has this id. Harmless if there is none."""
    values = {"stop": np.array([[True]]), "input_ids": np.array([[0]], np.int32), **_REQUIRED["tensorrt_llm"]}
    for _ in call_model(model, as_tensors(values), (), request_id=request_id):
        pass


def as_tensors(values: Mapping[str, NDArray[Any]]) -> list[Any]:
    """Arrays as inputs of a call."""
    return [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in values.items()]


def call_model(
    model: str,
    inputs: list[Any],
    outputs: Iterable[str],
    *,
    decoupled: bool = True,
    request_id: str = "",
    wait: Callable[[], Any] = lambda: True,
) -> Generator[dict[str, Any], None, None]:
    """Run another model of this server; its responses' tensors by name.

    With a `request_id` of its own, the request can be stopped by another one that has the same id. `wait` returns when
    there is a response to ask for, of models that tell of them (`engine.serving.mail`). The answer is read to its end
    in any case, since tritonserver 2.51 may crash when responses come for a call that nobody reads any more: whoever
    leaves early stops the request, or waits for the rest.

    Raises:
        pb_utils.TritonModelException: the model refused; carries its message.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        inputs=inputs,
        requested_output_names=list(dict.fromkeys(outputs)),
        request_id=request_id,
    )
    answers = _awaited(request.exec(decoupled=True) if decoupled else [request.exec()], wait)
    try:
        for answer in answers:
            if answer.has_error():
                refused = pb_utils.TritonModelException(answer.error().message())
                refused.code = answer.error().code()
                raise refused
            if answer.output_tensors():
                yield {tensor.name(): tensor for tensor in answer.output_tensors()}
    finally:
        for _ in answers:
            pass


def _awaited(answers: Any, wait: Callable[[], Any]) -> Iterator[Any]:
    """The responses of a call; Triton's object for them is kept for a while."""
    try:
        following = iter(answers)
        while True:
            wait()
            try:
                answer = next(following)
            except StopIteration:
                return
            yield answer
    finally:
        _ENDED.keep(answers)


class _Ended:
    """Answers that have been read, kept for a while.

    When an answer has come to its end, a thread of the Python backend (2.51, `Stub::SendCleanupId`) gives up the
    backend's reference to it without holding the interpreter's lock. If that is the last reference, it frees the
    response's arrays under the feet of other threads, and the process crashes soon after. So ours outlive it. They must
    not outlive the model: then their memory is gone.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[float, Any]] = deque()
        self._lock = threading.Lock()

    def keep(self, answer: Any) -> None:
        """Keep one more, and let go of those that are old enough."""
        now = time.monotonic()
        with self._lock:
            self._answers.append((now, answer))
            while self._answers[0][0] < now - _KEPT_SECONDS:
                self._answers.popleft()

    def clear(self) -> None:
        """Let go of all."""
        with self._lock:
            self._answers.clear()


_ENDED = _Ended()


def finish_calls() -> None:
    """To be called at the end of every model that calls others."""
    _ENDED.clear()
