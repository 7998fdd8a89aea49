"""gRPC for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2 as messages

from client import errors
from client.address import Address
from client.contract import Declared, Outputs, Request, unknown_model
from client.transports import CONTROL_TIMEOUT, AsyncCall, Deadline
from client.transports import grpc_messages as kserve


class AsyncGrpcTransport:
    """One channel to one server, made on first use: it belongs to the event loop that runs then."""

    def __init__(self, address: Address) -> None:
        self._address = str(address)
        self._opened: Any = None

    @property
    def _channel(self) -> Any:
        if self._opened is None:
            self._opened = grpc.aio.insecure_channel(self._address, options=kserve.CHANNEL_OPTIONS)
        return self._opened

    def start(self, request: Request, deadline: Deadline) -> AsyncCall:
        """As :meth:`Transport.start`."""
        stream = kserve.STREAM_INFER.bind(self._channel.unary_stream)
        return _AsyncGrpcCall(stream, self._address, request, deadline)

    async def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        question = messages.ModelMetadataRequest(name=model)
        return kserve.read_declared(await self._about(model, kserve.MODEL_METADATA, question, deadline))

    async def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        question = messages.ModelConfigRequest(name=model)
        return kserve.read_parameters(await self._about(model, kserve.MODEL_CONFIG, question, deadline))

    async def _about(self, model: str, method: kserve.Method, question: Any, deadline: Deadline) -> Any:
        """The answer to a question about a model."""
        timeout = deadline.remaining(CONTROL_TIMEOUT)
        try:
            return await method.bind(self._channel.unary_unary)(question, timeout=timeout)
        except grpc.RpcError as error:
            failure = kserve.question_failure(error, self._address, deadline)
        if isinstance(failure, errors.InvalidRequest):
            failure = unknown_model(model, await self._known_models(timeout))
        raise failure

    async def _known_models(self, timeout: float | None) -> list[str]:
        """Names of the server's models; none where it keeps its index closed."""
        index = kserve.REPOSITORY_INDEX.bind(self._channel.unary_unary)
        try:
            return kserve.known_models(await index(messages.RepositoryIndexRequest(), timeout=timeout))
        except grpc.RpcError:
            return []

    async def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        ready = kserve.MODEL_READY.bind(self._channel.unary_unary)
        try:
            message = await ready(messages.ModelReadyRequest(name=model), timeout=CONTROL_TIMEOUT)
        except grpc.RpcError:
            return False
        return bool(message.ready)

    async def close(self) -> None:
        """As :meth:`Transport.close`."""
        if self._opened is not None:
            await self._opened.close()


class _AsyncGrpcCall:
    """One gRPC stream with one request."""

    def __init__(self, stream: Any, address: str, request: Request, deadline: Deadline) -> None:
        self._stream = stream
        self._address = address
        self._request = request
        self._deadline = deadline
        self._rpc: Any = None
        self._cancelled = False

    async def responses(self) -> AsyncGenerator[Outputs, None]:
        """As :meth:`Call.responses`."""
        if self._cancelled:
            raise errors.cancelled(self._request.request_id)
        failure: errors.ClientError | None = None
        try:
            self._rpc = self._stream(
                kserve.write_request(self._request),
                timeout=self._deadline.remaining(),
            )
            async for message in self._rpc:
                if message.error_message:
                    # As in `client.transports.grpc_sync`: read on to the stream's end.
                    failure = errors.from_server(message.error_message, None, self._request.request_id)
                elif failure is None:
                    yield kserve.read_response(message.infer_response)
        except grpc.RpcError as error:
            raise failure or self._failure(error) from None
        except asyncio.CancelledError:
            # grpc.aio raises it for a cancelled call as well as for a cancelled task; only the former is
            # ours to report.
            if self._cancelled:
                raise errors.cancelled(self._request.request_id) from None
            raise
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
