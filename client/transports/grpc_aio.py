"""gRPC for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import grpc
import grpc.aio

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
        return _AsyncGrpcCall(self._channel, self._address, request, deadline)

    async def declared_inputs(self, model: str, deadline: Deadline) -> Mapping[str, Declared]:
        """As :meth:`Transport.declared_inputs`."""
        return kserve.read_declared(await self._about(model, kserve.MODEL_METADATA, deadline))

    async def parameters(self, model: str, deadline: Deadline) -> Mapping[str, str]:
        """As :meth:`Transport.parameters`."""
        return kserve.read_parameters(await self._about(model, kserve.MODEL_CONFIG, deadline))

    async def _about(self, model: str, method: kserve.Method, deadline: Deadline) -> Any:
        """The answer to a question about a model."""
        timeout = deadline.remaining(CONTROL_TIMEOUT)
        try:
            return await self._ask(method, timeout, name=model)
        except grpc.RpcError as error:
            failure = kserve.question_failure(error, self._address, deadline)
        if isinstance(failure, errors.InvalidRequest):
            failure = unknown_model(model, await self._known_models(timeout))
        raise failure

    async def _known_models(self, timeout: float | None) -> list[str]:
        """Names of the server's models; none where it keeps its index closed."""
        try:
            return kserve.known_models(await self._ask(kserve.REPOSITORY_INDEX, timeout))
        except grpc.RpcError:
            return []

    async def is_ready(self, model: str) -> bool:
        """As :meth:`Transport.is_ready`."""
        try:
            message = await self._ask(kserve.MODEL_READY, CONTROL_TIMEOUT, name=model)
        except grpc.RpcError:
            return False
        return bool(message.ready)

    async def close(self) -> None:
        """As :meth:`Transport.close`."""
        if self._opened is not None:
            await self._opened.close()

    async def _ask(self, method: kserve.Method, timeout: float | None, **fields: str) -> Any:
        """The answer to a question with these fields."""
        ask = method.bind(self._channel.unary_unary)
        return await ask(method.request(**fields), timeout=timeout)


class _AsyncGrpcCall(kserve.StreamCall):
    async def responses(self) -> AsyncGenerator[Outputs, None]:
        """As :meth:`Call.responses`."""
        try:
            async for message in self._send():
                if (outputs := self._read(message)) is not None:
                    yield outputs
        except grpc.RpcError as error:
            raise self._failure(error) from None
        except asyncio.CancelledError:
            # grpc.aio raises it for a cancelled call as well as for a cancelled task; only the former is
            # ours to report.
            self._check_cancelled()
            raise
        self._check_reported()
