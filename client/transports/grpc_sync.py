"""gRPC for threads. Responses are read straight from the call, in the caller's thread."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages

from client import errors
from client.address import Address
from client.contract import Declared, Outputs, Request, unknown_model
from client.transports import CONTROL_TIMEOUT, Call, Deadline
from client.transports import grpc_messages as kserve


class GrpcTransport:
    """One channel to one server; threads and gevent greenlets may share it."""

    def __init__(self, address: Address) -> None:
        self._address = str(address)
        self._channel = grpc.insecure_channel(self._address, options=kserve.CHANNEL_OPTIONS)
        self._stream = kserve.STREAM_INFER.bind(self._channel.unary_stream)
        self._metadata = kserve.MODEL_METADATA.bind(self._channel.unary_unary)
        self._config = kserve.MODEL_CONFIG.bind(self._channel.unary_unary)
        self._ready = kserve.MODEL_READY.bind(self._channel.unary_unary)
        self._index = kserve.REPOSITORY_INDEX.bind(self._channel.unary_unary)

    def start(self, request: Request, deadline: Deadline) -> Call:
        """As :meth:`Transport.start`."""
        return _GrpcCall(self._stream, self._address, request, deadline)

    def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        question = messages.ModelMetadataRequest(name=model)
        return kserve.read_declared(self._about(model, self._metadata, question, deadline))

    def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        question = messages.ModelConfigRequest(name=model)
        return kserve.read_parameters(self._about(model, self._config, question, deadline))

    def _about(self, model: str, ask: Any, question: Any, deadline: Deadline) -> Any:
        """The answer to a question about a model."""
        timeout = deadline.remaining(CONTROL_TIMEOUT)
        try:
            return ask(question, timeout=timeout)
        except grpc.RpcError as error:
            failure = kserve.question_failure(error, self._address, deadline)
        if isinstance(failure, errors.InvalidRequest):
            failure = unknown_model(model, self._known_models(timeout))
        raise failure

    def _known_models(self, timeout: float | None) -> list[str]:
        """Names of the server's models; none where it keeps its index closed."""
        try:
            return kserve.known_models(self._index(messages.RepositoryIndexRequest(), timeout=timeout))
        except grpc.RpcError:
            return []

    def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        try:
            message = self._ready(messages.ModelReadyRequest(name=model), timeout=CONTROL_TIMEOUT)
        except grpc.RpcError:
            return False
        return bool(message.ready)

    def close(self) -> None:
        """As :meth:`Transport.close`."""
        self._channel.close()


class _GrpcCall:
    """One gRPC stream with one request."""

    def __init__(self, stream: Any, address: str, request: Request, deadline: Deadline) -> None:
        self._stream = stream
        self._address = address
        self._request = request
        self._deadline = deadline
        self._rpc: Any = None
        self._cancelled = False

    def responses(self) -> Generator[Outputs, None, None]:
        """As :meth:`Call.responses`."""
        failure: errors.ClientError | None = None
        try:
            self._rpc = self._stream(
                kserve.write_request(self._request),
                timeout=self._deadline.remaining(),
            )
            if self._cancelled:
                self._rpc.cancel()
            for message in self._rpc:
                if message.error_message:
                    # The stream's end follows. Hanging up before it would leave the request open in Triton 2.51.
                    failure = errors.from_server(message.error_message, None, self._request.request_id)
                elif failure is None:
                    yield kserve.read_response(message.infer_response)
        except grpc.RpcError as error:
            raise failure or self._failure(error) from None
        if failure is not None:
            raise failure

    def cancel(self) -> None:
        """As :meth:`Call.cancel`."""
        self._cancelled = True
        if self._rpc is not None:
            self._rpc.cancel()

    def _failure(self, error: grpc.RpcError) -> errors.ClientError:
        if self._cancelled:
            return errors.cancelled(self._request.request_id)
        return kserve.generation_failure(error, self._address, self._deadline, self._request.request_id)
