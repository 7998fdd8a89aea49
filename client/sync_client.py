"""The client for threads (and gevent's greenlets).

with DrafthouseClient("localhost:8001") as client:
    print(client.generate("The capital of France is", max_tokens=8).text)
    for chunk in client.stream("Once upon a time", temperature=0.8, seed=1):
        print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from typing_extensions import Unpack

from client.address import Protocol, check_protocol, parse_address
from client.chat import ChatTemplate
from client.common import KnownInputs, Streams, StreamState
from client.contract import Request
from client.options import SamplingOptions
from client.plans import Plan
from client.results import Chunk, GenerationResult, ModelDescription
from client.transports import Call, Deadline, Transport


class Server(KnownInputs):
    """One server's transport, and the declared inputs of its models, asked for once."""

    def __init__(self, transport: Transport) -> None:
        super().__init__()
        self.transport = transport

    def request(self, plan: Plan, deadline: Deadline) -> Request:
        """The request of `plan` in the shapes that its model declares."""
        if plan.model not in self._declared:
            self._declared[plan.model] = self.transport.declared_inputs(plan.model, deadline)
        return plan.build(self._declared[plan.model])


class Stream(StreamState[Call]):
    """A generation being streamed: iterate it once for its chunks, then read :attr:`result`.

    The request is sent when iteration begins. Leaving the loop early by `break`, `return` or an exception
    (KeyboardInterrupt included) cancels the request on the server, and so does the end of a `with` block,
    which is the way to be certain of it where something else keeps the iterator alive.

    Iterating raises what went wrong as a :class:`client.errors.ClientError`, after the chunks before it.
    """

    def __init__(self, server: Server, plan: Plan) -> None:
        super().__init__(plan)
        self._server = server

    def __iter__(self) -> Iterator[Chunk]:
        self._begin()
        return self._chunks()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def _chunks(self) -> Generator[Chunk, None, None]:
        with self._under_way(self._server), closing(self._start().responses()) as responses:
            for outputs in responses:
                if (chunk := self._collect(outputs)) is not None:
                    yield chunk

    def _start(self) -> Call:
        deadline = Deadline(self._plan.deadline)
        request = self._server.request(self._plan, deadline)
        return self._sent(request, self._server.transport.start(request, deadline))


class DrafthouseClient(Streams[Stream]):
    """Client of one Triton server that serves the ensemble contract. Threads may share it.

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
        super().__init__(model, token_model)
        self._server = Server(_transport(url, protocol))

    def generate(
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
        return _collected(self.stream(prompt, deadline=deadline, request_id=request_id, **options))

    def chat(
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
        return self.generate(prompt, deadline=deadline, request_id=request_id, **options)

    def generate_tokens(
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
        stream = self.stream_tokens(ids, end_id=end_id, deadline=deadline, request_id=request_id, **options)
        return _collected(stream)

    def describe(self, model: str | None = None) -> ModelDescription:
        """What the server says about a model, by default the one that takes text.

        Raises:
            InvalidRequest: it has no such model. ServerUnavailable: nothing answers.
        """
        name, deadline, transport = model or self.model, Deadline(None), self._server.transport
        inputs = transport.declared_inputs(name, deadline)
        return ModelDescription(frozenset(inputs), transport.parameters(name, deadline))

    def is_ready(self) -> bool:
        """Whether the server is up and `model` can be asked; False, not an error, where nothing answers."""
        return self._server.transport.is_ready(self.model)

    def close(self) -> None:
        """Close the connections. Requests under way are cancelled."""
        self._server.transport.close()

    def __enter__(self) -> DrafthouseClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, plan: Plan) -> Stream:
        return Stream(self._server, plan)


def _collected(stream: Stream) -> GenerationResult:
    with stream:
        for _ in stream:
            pass
    return stream.result


def _transport(url: str, protocol: Protocol) -> Transport:
    """The transport for `protocol`; only its own library is imported."""
    check_protocol(protocol)
    address = parse_address(url)
    if protocol == "grpc":
        from client.transports.grpc_sync import GrpcTransport

        return GrpcTransport(address)
    from client.transports.http_sync import HttpTransport

    return HttpTransport(address)
