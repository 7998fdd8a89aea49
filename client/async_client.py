"""The client for asyncio. Same names and meanings as :mod:`client.sync_client`, with `await` and `async for`.

async with AsyncDrafthouseClient("localhost:8001") as client:
    result = await client.generate("The capital of France is", max_tokens=8)
    async for chunk in client.stream("Once upon a time", temperature=0.8, seed=1):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any

from typing_extensions import Unpack

from client import errors
from client.address import Protocol, check_protocol, parse_address
from client.chat import ChatTemplate
from client.collector import Collector
from client.contract import Declared, Request
from client.options import SamplingOptions
from client.plans import Plan, text_plan, token_plan
from client.results import Chunk, GenerationResult, ModelDescription
from client.transports import AsyncCall, AsyncTransport, Deadline


class AsyncServer:
    """As :class:`client.sync_client.Server`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport
        self._declared: dict[str, Mapping[str, Declared]] = {}

    async def request(self, plan: Plan, deadline: Deadline) -> Request:
        """As :meth:`Server.request`."""
        if plan.model not in self._declared:
            self._declared[plan.model] = await self.transport.declared_inputs(plan.model, deadline)
        return plan.build(self._declared[plan.model])

    def forget(self, model: str) -> None:
        """As :meth:`Server.forget`."""
        self._declared.pop(model, None)


class AsyncStream:
    """A generation being streamed: iterate it once (`async for`) for its chunks, then read :attr:`result`.

    The request is sent when iteration begins. Leaving the loop early and cancelling the task cancel the
    request on the server. After `break` Python does so when the event loop next runs; at the end of an
    `async with` block it has been done.

    Iterating raises what went wrong as a :class:`client.errors.ClientError`, after the chunks before it.
    """

    def __init__(self, server: AsyncServer, plan: Plan) -> None:
        self._server = server
        self._plan = plan
        self._call: AsyncCall | None = None
        self._collector: Collector | None = None
        self._begun = False
        self._complete = False
        self._cancelled = False

    @property
    def request_id(self) -> str:
        """The id under which the server's log knows the request."""
        return self._plan.request_id

    @property
    def result(self) -> GenerationResult:
        """The whole generation, once iteration has ended; after an early end what had arrived
        (``"cancelled"``).

        Raises:
            RuntimeError: iteration has not begun, has not ended, or ended before the request could be sent.
        """
        if self._collector is None or not (self._complete or self._cancelled):
            raise RuntimeError("the stream has no result yet: iterate it to its end, or cancel it, first")
        return self._collector.result(complete=self._complete)

    def cancel(self) -> None:
        """Cancel the request, on the server too. After the end it does nothing.

        An iteration under way raises :class:`client.errors.Cancelled`: what it got must not pass for all.
        """
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def __aiter__(self) -> AsyncIterator[Chunk]:
        if self._begun:
            raise RuntimeError(
                "a stream can be iterated only once: keep the chunks, or send the request again"
            )
        self._begun = True
        return self._chunks()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.cancel()

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            call = await self._start()
            async with aclosing(call.responses()) as responses:
                async for outputs in responses:
                    self._check_cancelled()
                    chunk = self._collect(outputs)
                    if chunk is not None:
                        yield chunk
            self._complete = True
        except errors.InvalidRequest:
            self._server.forget(self._plan.model)
            raise
        finally:
            if not self._complete:
                self.cancel()

    async def _start(self) -> AsyncCall:
        deadline = Deadline(self._plan.deadline)
        request = await self._server.request(self._plan, deadline)
        self._collector = Collector(request, time.perf_counter_ns())
        self._call = self._server.transport.start(request, deadline)
        self._check_cancelled()
        return self._call

    def _collect(self, outputs: Mapping[str, list[Any]]) -> Chunk | None:
        assert self._collector is not None
        return self._collector.add(outputs, time.perf_counter_ns())

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise errors.cancelled(self.request_id)


class AsyncDrafthouseClient:
    """Client of one Triton server that serves the ensemble contract, in the event loop that first uses it.

    Args:
        url: ``"HOST:PORT"`` of the server's gRPC or HTTP port.
        protocol: ``"grpc"`` (the faster one) or ``"http"``.
        model: the model that takes text.
        token_model: the model that takes token ids.

    All methods that generate take :class:`SamplingOptions` as keywords and besides

        deadline: seconds from sending after which the request is cancelled; None: no limit.
        request_id: the id for the server's log; by default a random one.

    and raise :class:`client.errors.InvalidRequest` before anything is sent if an argument cannot be right,
    otherwise the other errors of :mod:`client.errors`.
    """

    def __init__(
        self,
        url: str = "localhost:8001",
        *,
        protocol: Protocol = "grpc",
        model: str = "ensemble",
        token_model: str = "tensorrt_llm",
    ) -> None:
        self.model = model
        self.token_model = token_model
        self._server = AsyncServer(_transport(url, protocol))

    async def generate(
        self,
        prompt: str,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationResult:
        """Continue `prompt`, and return when the generation has ended.

        It is :meth:`stream`, collected: Triton can cancel what it streams, and the result has all timings.
        """
        plan = text_plan(self.model, prompt, options, deadline=deadline, request_id=request_id)
        return await self._run(plan)

    def stream(
        self,
        prompt: str,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """Continue `prompt`, chunk by chunk as the server emits them."""
        plan = text_plan(self.model, prompt, options, deadline=deadline, request_id=request_id)
        return AsyncStream(self._server, plan)

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
        """The assistant's answer to `messages` (each with `role` and `content`), as `template` puts them."""
        prompt = template.render(messages, tools=tools)
        return await self.generate(prompt, deadline=deadline, request_id=request_id, **options)

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: ChatTemplate,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """As :meth:`chat`, chunk by chunk."""
        prompt = template.render(messages, tools=tools)
        return self.stream(prompt, deadline=deadline, request_id=request_id, **options)

    async def generate_tokens(
        self,
        ids: Sequence[int],
        *,
        end_id: int | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> GenerationResult:
        """Continue the token ids of a prompt: no tokenizer on the way, and the result's text is empty.

        Args:
            ids: the prompt, special tokens included.
            end_id: the token that ends generation, which only the caller knows here; None: the server's own (on the
                embedded engine the model's end tokens).
        """
        plan = token_plan(self.token_model, ids, end_id, options, deadline=deadline, request_id=request_id)
        return await self._run(plan)

    def stream_tokens(
        self,
        ids: Sequence[int],
        *,
        end_id: int | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """As :meth:`generate_tokens`, chunk by chunk."""
        plan = token_plan(self.token_model, ids, end_id, options, deadline=deadline, request_id=request_id)
        return AsyncStream(self._server, plan)

    async def describe(self, model: str | None = None) -> ModelDescription:
        """As :meth:`DrafthouseClient.describe`."""
        name, deadline, transport = model or self.model, Deadline(None), self._server.transport
        inputs = await transport.declared_inputs(name, deadline)
        return ModelDescription(frozenset(inputs), await transport.parameters(name, deadline))

    async def is_ready(self) -> bool:
        """Whether the server is up and `model` can be asked; False, not an error, where nothing answers."""
        return await self._server.transport.is_ready(self.model)

    async def close(self) -> None:
        """Close the connections. Requests under way are cancelled."""
        await self._server.transport.close()

    async def __aenter__(self) -> AsyncDrafthouseClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _run(self, plan: Plan) -> GenerationResult:
        async with AsyncStream(self._server, plan) as stream:
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
