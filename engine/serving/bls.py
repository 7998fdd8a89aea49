"""The `tensorrt_llm_bls` model: what the ensemble does, called from Python.

Every request runs in a thread of its own, so requests stream side by side; the order of models and the names of
tensors are those of `engine.serving.wiring`.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils

from engine.serving.backend import call_model, parameters, refuse, stop_generation
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
            for generated in self._generate(inputs):
                if sender.is_cancelled():
                    stop_generation(self._generation, generated["generation_handle"].as_numpy())
                outputs = self._outputs(generated)
                sender.send(pb_utils.InferenceResponse([t for t in outputs if t.name() in wanted]))
            sender.send(flags=_FINAL)
        except Exception as error:  # a model's refusal, or a fault of ours: nobody else would tell the client
            refuse(sender, error)

    def _generate(self, inputs: Tensors) -> Iterator[Tensors]:
        prepared = _call("preprocessing", _renamed(inputs, TO_PREPROCESSING), PREPROCESSING_TO_GENERATION)
        renamed = _renamed(inputs, TO_GENERATION) | _renamed(prepared, PREPROCESSING_TO_GENERATION)
        names = (*GENERATION_TO_POSTPROCESSING, *GENERATION_OUTPUTS)
        return call_model(self._generation, list(renamed.values()), names)

    def _outputs(self, generated: Tensors) -> list[Any]:
        tokens = _renamed(generated, GENERATION_TO_POSTPROCESSING)
        text = _call("postprocessing", tokens, ("OUTPUT",))["OUTPUT"].as_numpy()
        passed_on = [generated[name] for name in GENERATION_OUTPUTS if name in generated]
        return [pb_utils.Tensor("text_output", text), *passed_on]


def _call(model: str, inputs: Tensors, names: Iterable[str]) -> Tensors:
    return next(call_model(model, list(inputs.values()), names, decoupled=False))


def _renamed(tensors: Tensors, names: Mapping[str, str]) -> Tensors:
    """Inputs of the next model. Scalars reach a model without their last axis, which callers have to give."""
    renamed = {}
    for public, inner in names.items():
        if public in tensors:
            value = tensors[public].as_numpy()
            renamed[inner] = pb_utils.Tensor(inner, value[:, None] if value.ndim == 1 else value)
    return renamed
