"""What the clients for threads and for asyncio share: all that does not wait for the server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import Unpack

from client import errors
from client.chat import ChatTemplate
from client.collector import Collector
from client.contract import Declared, Request
from client.options import SamplingOptions
from client.plans import Plan, text_plan, token_plan
from client.results import Chunk, GenerationResult


class _Cancellable(Protocol):
    def cancel(self) -> None:
        """Give the request up."""


CallType = TypeVar("CallType", bound=_Cancellable)
StreamType = TypeVar("StreamType")


class KnownInputs:
    """The declared inputs of a server's models, asked for once."""

    def __init__(self) -> None:
        self._declared: dict[str, Mapping[str, Declared]] = {}

    def forget(self, model: str) -> None:
        """Ask for `model`'s inputs anew next time: it may have been reloaded with others."""
        self._declared.pop(model, None)


class StreamState(Generic[CallType]):
    """The state of a generation that is being streamed."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._call: CallType | None = None
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
        """Cancel the request, on the server too; with threads, from any of them. After the end it does nothing.

        An iteration under way raises :class:`client.errors.Cancelled`: what it got must not pass for all.
        """
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError(
                "a stream can be iterated only once: keep the chunks, or send the request again"
            )
        self._begun = True

    @contextmanager
    def _under_way(self, known: KnownInputs) -> Iterator[None]:
        """The request is under way; if this does not reach its end, neither does the request."""
        try:
            yield
            self._complete = True
        except errors.InvalidRequest:
            known.forget(self._plan.model)
            raise
        finally:
            if not self._complete:
                self.cancel()

    def _sent(self, request: Request, call: CallType) -> CallType:
        self._collector = Collector(request, time.perf_counter_ns())
        self._call = call
        self._check_cancelled()
        return call

    def _collect(self, outputs: Mapping[str, list[Any]]) -> Chunk | None:
        self._check_cancelled()
        assert self._collector is not None
        return self._collector.add(outputs, time.perf_counter_ns())

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise errors.cancelled(self.request_id)


class Streams(Generic[StreamType]):
    """The methods of a client that begin a stream.

    Args:
        model: the model that takes text.
        token_model: the model that takes token ids.
    """

    def __init__(self, model: str, token_model: str) -> None:
        self.model = model
        self.token_model = token_model

    def _open(self, plan: Plan) -> StreamType:
        raise NotImplementedError

    def stream(
        self,
        prompt: str,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> StreamType:
        """Continue `prompt`, chunk by chunk as the server emits them."""
        return self._open(text_plan(self.model, prompt, options, deadline=deadline, request_id=request_id))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: ChatTemplate,
        tools: Sequence[Mapping[str, Any]] | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> StreamType:
        """As `chat`, chunk by chunk."""
        prompt = template.render(messages, tools=tools)
        return self.stream(prompt, deadline=deadline, request_id=request_id, **options)

    def stream_tokens(
        self,
        ids: Sequence[int],
        *,
        end_id: int | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        **options: Unpack[SamplingOptions],
    ) -> StreamType:
        """As `generate_tokens`, chunk by chunk."""
        plan = token_plan(self.token_model, ids, end_id, options, deadline=deadline, request_id=request_id)
        return self._open(plan)
