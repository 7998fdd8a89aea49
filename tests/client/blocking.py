"""The asyncio client behind the synchronous one's face, so that both pass the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from client import AsyncDrafthouseClient, AsyncStream, Chunk, GenerationResult, ModelDescription


class Blocking:
    """The asyncio client, driven from synchronous tests, so that both clients pass the same ones."""

    def __init__(self, client: AsyncDrafthouseClient, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self._loop = loop

    def generate(self, *arguments: Any, **options: Any) -> GenerationResult:
        return self._loop.run_until_complete(self._client.generate(*arguments, **options))

    def generate_tokens(self, *arguments: Any, **options: Any) -> GenerationResult:
        return self._loop.run_until_complete(self._client.generate_tokens(*arguments, **options))

    def chat(self, *arguments: Any, **options: Any) -> GenerationResult:
        return self._loop.run_until_complete(self._client.chat(*arguments, **options))

    def stream(self, *arguments: Any, **options: Any) -> BlockingStream:
        return BlockingStream(self._client.stream(*arguments, **options), self._loop)

    def stream_tokens(self, *arguments: Any, **options: Any) -> BlockingStream:
        return BlockingStream(self._client.stream_tokens(*arguments, **options), self._loop)

    def stream_chat(self, *arguments: Any, **options: Any) -> BlockingStream:
        return BlockingStream(self._client.stream_chat(*arguments, **options), self._loop)

    def describe(self, *arguments: Any) -> ModelDescription:
        return self._loop.run_until_complete(self._client.describe(*arguments))

    def is_ready(self) -> bool:
        return self._loop.run_until_complete(self._client.is_ready())

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())


class BlockingStream:
    """An asyncio stream, driven from synchronous tests."""

    def __init__(self, stream: AsyncStream, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop

    def __iter__(self) -> Iterator[Chunk]:
        chunks = self._stream.__aiter__()
        end = object()

        async def following() -> Any:
            return await anext(chunks, end)

        while (chunk := self._loop.run_until_complete(following())) is not end:
            yield chunk

    @property
    def result(self) -> GenerationResult:
        return self._stream.result
