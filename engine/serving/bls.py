"""The `tensorrt_llm_bls` model: what the ensemble does, called from Python.

Every request runs in a thread of its own, so requests stream side by side; the order of models and the names of
tensors are those of `engine.serving.wiring`.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.serving.backend import parameters
from engine.serving.wiring import (
    GENERATION_OUTPUTS,
    GENERATION_TO_POSTPROCESSING,
    PREPROCESSING_TO_GENERATION,
    TO_GENERATION,
    TO_PREPROCESSING,
)

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
Tensors = dict[str, Any]


class BlsModel:
    """Preprocessing, generation and postprocessing in a row."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read the name of the generation model and the number of requests to serve at once."""
        settings = parameters(arguments)
        self._generation = settings["tensorrt_llm_model_name"]
        self._pool = ThreadPoolExecutor(int(settings["max_requests"]), thread_name_prefix="bls")

    def execute(self, requests: list[Any]) -> None:
        """Start the requests; their responses follow from the pool's threads."""
        for request in requests:
            self._pool.submit(self._serve, request, request.get_response_sender())

    def finalize(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown(cancel_futures=True)

    def _serve(self, request: Any, sender: Any) -> None:
        try:
            wanted = set(request.requested_output_names())
            inputs = {tensor.name(): tensor for tensor in request.inputs()}
            for outputs in self._responses(inputs):
                if sender.is_cancelled():
                    break  # dropping the iterator cancels the generation behind it
                sender.send(pb_utils.InferenceResponse([t for t in outputs if t.name() in wanted]))
            sender.send(flags=_FINAL)
        except pb_utils.TritonModelException as error:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))), flags=_FINAL)

    def _responses(self, inputs: Tensors) -> Iterator[list[Any]]:
        prepared = _call("preprocessing", _renamed(inputs, TO_PREPROCESSING), PREPROCESSING_TO_GENERATION)
        generation_inputs = _renamed(inputs, TO_GENERATION) | _renamed(prepared, PREPROCESSING_TO_GENERATION)
        names = (*GENERATION_TO_POSTPROCESSING, *GENERATION_OUTPUTS)
        for generated in _stream(self._generation, generation_inputs, names):
            text = _call("postprocessing", _renamed(generated, GENERATION_TO_POSTPROCESSING), ("OUTPUT",))
            outputs = [generated[name] for name in GENERATION_OUTPUTS if name in generated]
            yield [pb_utils.Tensor("text_output", text["OUTPUT"].as_numpy()), *outputs]


def _call(model: str, inputs: Tensors, names: Any) -> Tensors:
    return next(iter(_stream(model, inputs, names, decoupled=False)))


def _stream(model: str, inputs: Tensors, names: Any, *, decoupled: bool = True) -> Iterator[Tensors]:
    request = pb_utils.InferenceRequest(
        model_name=model, inputs=list(inputs.values()), requested_output_names=list(dict.fromkeys(names))
    )
    answers = request.exec(decoupled=True) if decoupled else [request.exec()]
    for answer in answers:
        if answer.has_error():
            raise pb_utils.TritonModelException(answer.error().message())
        if answer.output_tensors():
            yield {tensor.name(): tensor for tensor in answer.output_tensors()}


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Inputs of the next model. Scalars reach a model without their last axis, which callers have to give."""
    renamed = {}
    for public, inner in names.items():
        if public in tensors:
            value = tensors[public].as_numpy()
            renamed[inner] = pb_utils.Tensor(inner, value[:, None] if value.ndim == 1 else value)
    return renamed
