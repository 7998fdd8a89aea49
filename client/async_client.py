"""The client for asyncio. Same names and meanings as :mod:`client.sync_client`, with `await` and `async for`.

async with AsyncDrafthouseClient("localhost:8001") as client:
    result = await client.generate("The capital of France is", max_tokens=8)
    async for chunk in client.stream("Once upon a time", temperature=0.8, seed=1):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from typing_extensions import Unpack

from client.address import Protocol, check_protocol, parse_address
from client.chat import ChatTemplate
from client.common import KnownInputs, Streams, StreamState
from client.contract import Request
from client.options import SamplingOptions
from client.plans import Plan
from client.results import Chunk, GenerationResult, ModelDescription
from client.transports import AsyncCall, AsyncTransport, Deadline


class AsyncServer(KnownInputs):
    """As :class:`client.sync_client.Server`."""

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__()
        self.transport = transport

    async def request(self, plan: Plan, deadline: Deadline) -> Request:
        """As :meth:`Server.request`."""
        if plan.model not in self._declared:
            self._declared[plan.model] = await self.transport.declared_inputs(plan.model, deadline)
        return plan.build(self._declared[plan.model])


class AsyncStream(StreamState[AsyncCall]):
    """A generation being streamed: iterate it once (`async for`) for its chunks, then read :attr:`result`.

    The request is sent when iteration begins. Leaving the loop early and cancelling the task cancel the
    request on the server. After `break` Python does so when the event loop next runs; at the end of an
    `async with` block it has been done.

    Iterating raises what went wrong as a :class:`client.errors.ClientError`, after the chunks before it.
    """

    def __init__(self, server: AsyncServer, plan: Plan) -> None:
        super().__init__(plan)
        self._server = server

    def __aiter__(self) -> AsyncIterator[Chunk]:
        self._begin()
        return self._chunks()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        with self._under_way(self._server):
            call = await self._start()
            async with aclosing(call.responses()) as responses:
                async for outputs in responses:
                    if (chunk := self._collect(outputs)) is not None:
                        yield chunk

    async def _start(self) -> AsyncCall:
        deadline = Deadline(self._plan.deadline)
        request = await self._server.request(self._plan, deadline)
        return self._sent(request, self._server.transport.start(request, deadline))


class AsyncDrafthouseClient(Streams[AsyncStream]):
    """As :class:`client.sync_client.DrafthouseClient`, in the event loop that first uses it."""

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        protocol: Protocol = "grpc",
        model: str = "ensemble",
        token_model: str = "tensorrt_llm",
    ) -> None:
        super().__init__(model, token_model)
        self._server = AsyncServer(_transport(url, protocol))

    async def generate(
        self,
        prompt: str,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationResult:
        """As :meth:`DrafthouseClient.generate`."""
        return await _collected(self.stream(prompt, deadline=deadline, request_id=request_id, **options))

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: ChatTemplate,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationResult:
        """As :meth:`DrafthouseClient.chat`."""
        prompt = template.render(messages, tools=tools)
        return await self.generate(prompt, deadline=deadline, request_id=request_id, **options)

    async def generate_tokens(
        self,
        ids: Sequence[int],
        *,
        end_id: int | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationResult:
        """As :meth:`DrafthouseClient.generate_tokens`."""
        stream = self.stream_tokens(ids, end_id=end_id, deadline=deadline, request_id=request_id, **options)
        return await _collected(stream)

    async def describe(self, model: str | None = None) -> ModelDescription:
        """As :meth:`DrafthouseClient.describe`."""
        name, deadline, transport = model or self.model, Deadline(None), self._server.transport
        inputs = await transport.declared_inputs(name, deadline)
        return ModelDescription(frozenset(inputs), await transport.parameters(name, deadline))

    async def is_ready(self) -> bool:
        """As :meth:`DrafthouseClient.is_ready`."""
        return await self._server.transport.is_ready(self.model)

    async def close(self) -> None:
        """As :meth:`DrafthouseClient.close`."""
        await self._server.transport.close()

    async def __aenter__(self) -> AsyncDrafthouseClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open(self, plan: Plan) -> AsyncStream:
        return AsyncStream(self._server, plan)


async def _collected(stream: AsyncStream) -> GenerationResult:
    async with stream:
        async for _ in stream:
            pass
    return stream.result


def _transport(url: str, protocol: Protocol) -> AsyncTransport:
    """The transport for `protocol`; only its own library is imported."""
    check_protocol(protocol)
    address = parse_address(url)
    if protocol == "grpc":
        from client.transports.grpc_aio import AsyncGrpcTransport

        return AsyncGrpcTransport(address)
    from client.transports.http_aio import AsyncHttpTransport

    return AsyncHttpTransport(address)
