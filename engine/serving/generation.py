"""The `tensorrt_llm` model on the embedded engine."""

import math
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from deployments.spec import DeploymentSpec
from engine.engine import Engine, EngineLimits
from engine.events import Event
from engine.manifest import check_fits
from engine.openvino_runner import OpenVinoRunner
from engine.request import RequestError
from engine.service import EngineService
from engine.serving.backend import directory, parameters, refusal, refuse, response, tensors
from engine.serving.contract import Answer, GenerationCall, Tensors
from engine.serving.metrics import EngineMetrics
from speculators.registry import create, settings_of

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class GenerationModel:
    """Hands requests to the engine and its events back to Triton."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the engine that the model's parameters name.

        Raises:
            EngineError: it is missing or does not fit the deployment.
        """
        spec = DeploymentSpec.model_validate_json(parameters(arguments)["deployment"])
        engine_directory = directory(arguments, "gpt_model_path")
        limits = EngineLimits(
            max_batch_size=spec.engine.max_batch_size,
            max_sequence_length=spec.engine.max_sequence_length,
            max_queue_size=spec.engine.max_queue_size,
            prefill_chunk=spec.engine.prefill_chunk,
        )
        runner = open_runner(spec, engine_directory)
        settings = spec.speculation.model_dump(exclude={"method"})
        known = settings_of(spec.speculation.method)
        speculator = create(spec.speculation.method, **{key: settings[key] for key in known})
        engine = Engine(runner, speculator, limits)
        metrics = EngineMetrics(engine.statistics, limits, runner)
        self._end_ids = frozenset(runner.manifest.end_ids)
        self._exclude_input = spec.serving.exclude_input_in_output
        self._exchanges: dict[int, _Exchange] = {}
        self._service = EngineService(engine, metrics.publish)

    def execute(self, requests: list[Any]) -> None:
        """Start generations; their responses follow from the engine's thread."""
        for request in requests:
            try:
                self._start(request, tensors(request))
            except Exception as error:  # one request's fault is not to become that of its neighbours
                refuse(request.get_response_sender(), error)

    def _start(self, request: Any, inputs: Tensors) -> None:
        if "stop" in inputs and inputs["stop"].any():
            self._stop(request, inputs)
            return
        call = GenerationCall(inputs, self._end_ids, self._exclude_input)
        _Exchange(request, self._exchanges).start(call, self._service)

    def _stop(self, request: Any, inputs: Tensors) -> None:
        """End a generation: that of the handle, or as with NVIDIA's backend those of the request's own id."""
        if "generation_handle" in inputs:
            handle = int(np.ravel(inputs["generation_handle"])[0])
            meant = [exchange for exchange in self._open() if exchange.handle == handle]
        elif request.request_id():
            meant = [exchange for exchange in self._open() if exchange.request_id == request.request_id()]
        else:
            raise RequestError(
                "stop is set but the request has no id; give it that of the request to be stopped"
            )
        for exchange in meant:
            exchange.stopped = True
        request.get_response_sender().send(flags=_FINAL)

    def _open(self) -> list["_Exchange"]:
        """A copy, since the engine's thread takes out what has ended."""
        return list(self._exchanges.values())

    def finalize(self) -> None:
        """End what still runs."""
        self._service.close()


class _Exchange:
    """One Triton request and its responses.

    Triton does not tell a running step of an ensemble that its client has gone. So `postprocessing`, which is
    told, says so here by `stop`, naming the handle that came with the tokens. The handle is random: whoever
    does not have it cannot stop what others have running.
    """

    def __init__(self, request: Any, open_exchanges: dict[int, "_Exchange"]) -> None:
        self.handle = secrets.randbits(64)
        self.request_id = request.request_id()
        self.stopped = False
        self._error: Exception | None = None
        self._begun = False
        self._sender = request.get_response_sender()
        self._wanted = request.requested_output_names()
        self._exchanges = open_exchanges
        self._open = 0

    def start(self, call: GenerationCall, service: EngineService) -> None:
        self._open = len(call.requests)
        self._exchanges[self.handle] = self
        for row, request in enumerate(call.requests):
            service.submit(request, partial(self._send, Answer(call, row)), self._abandoned)

    def _abandoned(self) -> bool:
        return self.stopped or self._sender.is_cancelled()

    def _send(self, answer: Answer, event: Event) -> None:
        """Pass on an event of one row. What ends a row before its time ends the request and its other rows."""
        if event.finish_reason:
            self._open -= 1
        if not self._open:
            del self._exchanges[self.handle]
        if event.finish_reason in ("error", "cancelled"):
            self.stopped = True
            self._error = self._error or event.error
        if not self.stopped:
            outputs = answer.add(event)
            if outputs is not None:
                outputs["generation_handle"] = np.array([[self.handle]], np.uint64)
                self._sender.send(response(outputs, self._wanted), flags=0 if self._open else _FINAL)
                self._begun = True
        elif not self._open:
            self._end()

    def _end(self) -> None:
        """Close a request that did not come to its own end.

        A request that was cancelled gets no error but only its end: nobody listens any more, and tritonserver
        2.51 now and then crashes when it writes to a gRPC stream that its client has cancelled.
        """
        if self._error is None:
            self._sender.send(flags=_FINAL)
        elif self._begun:
            # A caller within the server never sees an error that carries the final flag and is not the first.
            self._sender.send(refusal(self._error))
            self._sender.send(flags=_FINAL)
        else:
            refuse(self._sender, self._error)


def open_runner(spec: DeploymentSpec, directory: Any) -> OpenVinoRunner:
    """The compiled engine of a deployment, with a cache for as many full-length requests as run at once."""
    length = spec.engine.max_sequence_length
    blocks = spec.engine.max_batch_size * math.ceil(length / 32)
    runner = OpenVinoRunner(directory, num_blocks=blocks, threads=spec.engine.threads)
    check_fits(runner.manifest, directory, precision=spec.engine.precision, max_sequence_length=length)
    return runner
