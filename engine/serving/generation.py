"""The `tensorrt_llm` model on the embedded engine."""

import copy
import dataclasses
import secrets
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from deployments.spec import DeploymentSpec
from engine.control.controller import Controller
from engine.deadlines import check_one_shot
from engine.deployment import open_engine
from engine.errors import StoppedError
from engine.outputs import RequestOutput
from engine.service import EngineService
from engine.serving.backend import (
    directories,
    directory,
    input_names,
    parameters,
    refusal,
    refuse,
    response,
    tensors,
)
from engine.serving.contract import Answer, GenerationCall, Tensors, refuse_unsupported
from engine.serving.life import Life, SignOfLife, refuse_when_stopping
from engine.serving.mail import Mailbox, Teller
from engine.serving.metrics import EngineMetrics
from engine.serving.outbox import Outbox
from engine.serving.request_names import refuse_unknown
from engine.serving.salts import parted
from engine.serving.stop_ids import check_stop_id
from engine.serving.text import TextCodec

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class GenerationModel:
    """Hands requests to the engine and its outputs back to Triton."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load the engine that the model's parameters name.

        Raises:
            EngineError: it is missing or does not fit the deployment.
        """
        spec = DeploymentSpec.model_validate_json(parameters(arguments)["deployment"])
        engine, runner = open_engine(
            spec,
            directory(arguments, "gpt_model_path"),
            directories(arguments, "speculator_paths"),
            tell=pb_utils.Logger.log_info,
        )
        self._drafts = parameters(arguments).get("role") == "draft"
        self._metrics = metrics = EngineMetrics(engine.statistics, arguments)
        metrics.declare_load(engine.config, runner)
        attention = runner.graph.attention
        metrics.declare_attention(attention)
        pb_utils.Logger.log_info(f"attention of {arguments['model_name']}: " + ", ".join(attention.values()))
        if not self._drafts:  # whose steps say nothing about the output
            metrics.declare_speculation("engine")
        if isinstance(engine.policy, Controller):
            metrics.declare_decisions(engine.policy.decisions)
        metrics.publish()
        self._inputs = input_names(arguments)
        self._end_ids = frozenset(runner.manifest.end_ids)
        self._stop_by_id = spec.serving.stop_by_id
        self._parted = spec.embedded.kv_cache_sharing == "salted"
        self._one_shot_tokens = spec.embedded.max_one_shot_tokens
        self._exclude_input = spec.serving.exclude_input_in_output
        self._codec = TextCodec(
            directory(arguments, "tokenizer_dir"),
            skip_special_tokens=parameters(arguments)["skip_special_tokens"] == "true",
        )
        self._exchanges: dict[int, _Exchange] = {}
        self._outbox = Outbox()
        self._mailbox = Mailbox(arguments["model_name"], self._hear)
        self._life = Life(arguments)
        self._sign = SignOfLife(f"{arguments['model_instance_name']}, engine")
        self._service = EngineService(engine, metrics.publish, self._sign.show)

    def execute(self, requests: list[Any]) -> None:
        """Start generations; their responses follow from the engine's thread."""
        for request in requests:
            try:
                self._start(request, tensors(request))
            except Exception as error:  # one request's fault is not to become that of its neighbours
                refuse(Teller(request), error)

    def _start(self, request: Any, inputs: Tensors) -> None:
        if "stop" in inputs and inputs["stop"].any():
            self._stop(request, inputs)
            return
        refuse_unknown(request.parameters(), self._inputs)
        refuse_unsupported(inputs)
        if self._parted:
            inputs = parted(inputs, len(np.atleast_2d(inputs.get("input_ids", ()))))
        call = GenerationCall(inputs, self._end_ids, self._exclude_input, self._codec)
        if not self._drafts and not call.streaming:
            for item in call.requests:
                check_one_shot(item.max_tokens, self._one_shot_tokens)
        if not self._drafts and not any(item.continued for item in call.requests):
            refuse_when_stopping()
        _Exchange(request, self._exchanges, self._outbox).start(call, self._service)

    def _stop(self, request: Any, inputs: Tensors) -> None:
        """End a generation: that of the handle, or as with NVIDIA's backend those of the request's own id."""
        if "generation_handle" in inputs:
            handle = int(np.ravel(inputs["generation_handle"])[0])
            meant = [exchange for exchange in self._open() if exchange.handle == handle]
        else:
            meant = self._of_id(request.request_id())
            for exchange in meant:
                exchange.error = StoppedError("the request was stopped, by another one with its id")
        for exchange in meant:
            exchange.stopped = True
        Teller(request).send(flags=_FINAL)

    def _hear(self, text: str) -> None:
        """Somebody says that the client of a generation has gone: by its handle, or by the id of a call."""
        for exchange in self._open():
            if text in (str(exchange.handle), exchange.request_id):
                exchange.stopped = True

    def _of_id(self, identity: str) -> list["_Exchange"]:
        check_stop_id(identity, by_any=self._stop_by_id)
        return [exchange for exchange in self._open() if exchange.request_id == identity]

    def _open(self) -> list["_Exchange"]:
        """A copy, since the engine's thread takes out what has ended."""
        return list(self._exchanges.values())

    def finalize(self) -> None:
        """End what still runs, and send what is still to be sent."""
        self._mailbox.close()
        self._service.close()
        self._outbox.close()
        self._metrics.close()
        self._sign.end()
        self._life.end()


class _Exchange:
    """One Triton request and its responses.

    Triton does not tell a running step of an ensemble that its client has gone. So `postprocessing`, which is
    told, says so here by a message, naming the handle that came with the tokens. The handle is random: whoever
    does not have it cannot stop what others have running.
    """

    def __init__(self, request: Any, open_exchanges: dict[int, "_Exchange"], outbox: Outbox) -> None:
        self.handle = secrets.randbits(64)
        self.request_id = request.request_id()
        self.stopped = False
        self.error: Exception | None = None
        self._begun = False
        self._sender = Teller(request)
        self._wanted = request.requested_output_names()
        self._exchanges = open_exchanges
        self._outbox = outbox
        self._open = 0

    def start(self, call: GenerationCall, service: EngineService) -> None:
        self._open = len(call.requests)
        self._exchanges[self.handle] = self
        for row, request in enumerate(call.requests):
            service.submit(request, partial(self._take, Answer(call, row)), self._abandoned)

    def _abandoned(self) -> bool:
        return self.stopped or self._sender.is_cancelled()

    def _take(self, answer: Answer, output: RequestOutput) -> None:
        """Take in an output of one row. What ends a row before its time ends the request and its other rows."""
        if output.finish_reason:
            self._open -= 1
        last = not self._open
        if last:
            del self._exchanges[self.handle]
        if output.finish_reason in ("error", "cancelled"):
            self.stopped = True
            self.error = self.error or output.error
        if not self.stopped:
            # The engine goes on counting in the metrics while the response waits to be sent.
            output = dataclasses.replace(output, metrics=copy.copy(output.metrics))
            self._outbox.put(partial(self._send, answer, output, last), partial(self._fail, last))
        elif last:
            self._outbox.put(self._end)

    def _fail(self, last: bool, error: Exception) -> None:
        """A response could not be sent: the request is ended with that error."""
        self.stopped = True
        self.error = self.error or error
        if last:
            self._end()

    def _send(self, answer: Answer, output: RequestOutput, last: bool) -> None:
        if self.stopped:  # meanwhile; what is on its way is not sent any more, but an end is due
            if last:
                self._end()
            return
        outputs = answer.add(output)
        if outputs is not None:
            outputs["generation_handle"] = np.array([[self.handle]], np.uint64)
            self._sender.send(response(outputs, self._wanted), flags=_FINAL if last else 0)
            self._begun = True

    def _end(self) -> None:
        """Close a request that did not come to its own end.

        A request that was cancelled gets no error but only its end: nobody listens any more, and tritonserver
        2.51 now and then crashes when it writes to a gRPC stream that its client has cancelled.
        """
        if self.error is None or self._sender.is_cancelled():
            self._sender.send(flags=_FINAL)
        elif self._begun:
            # A caller within the server never sees an error that carries the final flag and is not the first.
            self._sender.send(refusal(self.error))
            self._sender.send(flags=_FINAL)
        else:
            refuse(self._sender, self.error)
