"""gRPC for threads. Responses are read straight from the call, in the caller's thread."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import grpc

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

    def start(self, request: Request, deadline: Deadline) -> Call:
        """As :meth:`Transport.start`."""
        return _GrpcCall(self._channel, self._address, request, deadline)

    def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        return kserve.read_declared(self._about(model, kserve.MODEL_METADATA, deadline))

    def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        return kserve.read_parameters(self._about(model, kserve.MODEL_CONFIG, deadline))

    def _about(self, model: str, method: kserve.Method, deadline: Deadline) -> Any:
        """The answer to a question about a model."""
        timeout = deadline.remaining(CONTROL_TIMEOUT)
        try:
            return self._ask(method, timeout, name=model)
        except grpc.RpcError as error:
            failure = kserve.question_failure(error, self._address, deadline)
        if isinstance(failure, errors.InvalidRequest):
            failure = unknown_model(model, self._known_models(timeout))
        raise failure

    def _known_models(self, timeout: float | None) -> list[str]:
        """Names of the server's models; none where it keeps its index closed."""
        try:
            return kserve.known_models(self._ask(kserve.REPOSITORY_INDEX, timeout))
        except grpc.RpcError:
            return []

    def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        try:
            message = self._ask(kserve.MODEL_READY, CONTROL_TIMEOUT, name=model)
        except grpc.RpcError:
            return False
        return bool(message.ready)

    def close(self) -> None:
        """As :meth:`Transport.close`."""
        self._channel.close()

    def _ask(self, method: kserve.Method, timeout: float | None, **fields: str) -> Any:
        """The answer to a question with these fields."""
        return method.bind(self._channel.unary_unary)(method.request(**fields), timeout=timeout)


class _GrpcCall(kserve.StreamCall):
    def responses(self) -> Generator[Outputs, None, None]:
        """As :meth:`Call.responses`."""
        try:
            for message in self._send():
                if (outputs := self._read(message)) is not None:
                    yield outputs
        except grpc.RpcError as error:
            raise self._failure(error) from None
        self._check_reported()
