"""What only the asyncio client does: task cancellation, `async for` left early, many requests on one loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from client import AsyncDrafthouseClient, AsyncStream, errors
from tests.client.triton_server import DEADLINES, Triton

pytestmark = pytest.mark.triton

ENDLESS = {"prompt": "endless words", "max_tokens": 20_000}

Scene = Callable[[AsyncDrafthouseClient], Awaitable[AsyncStream]]


@pytest.fixture(params=["grpc", "http"])
def play(request: pytest.FixtureRequest, triton: Triton) -> Callable[[Scene], AsyncStream]:
    """Runs a coroutine with a client, in a loop of its own, and checks that its stream was cancelled."""

    async def with_client(scene: Scene) -> AsyncStream:
        address = triton.address(request.param)
        async with AsyncDrafthouseClient(address, protocol=request.param, model="words") as client:
            stream = await scene(client)
            how = await asyncio.to_thread(triton.ending, stream.request_id)
            assert how == "cancelled"
            assert stream.result.finish_reason == "cancelled"
            return stream

    return lambda scene: asyncio.run(with_client(scene))


def test_break(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        stream = client.stream(**ENDLESS)
        async for _ in stream:
            break
        return stream

    assert play(scene).result.text == "endless words "


def test_exception_in_the_loop(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        stream = client.stream(**ENDLESS)
        with pytest.raises(ZeroDivisionError):
            async for _ in stream:
                _ = 1 / 0
        return stream

    play(scene)


def test_end_of_async_with_block(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        async with client.stream(**ENDLESS) as stream:
            chunks = aiter(stream)
            await anext(chunks)
        return stream

    play(scene)


def test_cancelled_task(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        stream = client.stream(**ENDLESS)
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return stream

    play(scene)


def test_cancel_by_another_task(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        stream = client.stream(**ENDLESS)
        with pytest.raises(errors.Cancelled):
            async for _ in stream:
                asyncio.get_running_loop().call_later(0.05, stream.cancel)
        return stream

    play(scene)


def test_wait_for(play: Callable[[Scene], AsyncStream]) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        stream = client.stream(**ENDLESS)

        async def read() -> None:
            async for _ in stream:
                pass

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(read(), 0.2)
        return stream

    play(scene)


def test_deadline(play: Callable[[Scene], AsyncStream], triton: Triton) -> None:
    async def scene(client: AsyncDrafthouseClient) -> AsyncStream:
        for deadline in DEADLINES:
            stream = client.stream(**ENDLESS, deadline=deadline)
            with pytest.raises(errors.DeadlineExceeded, match=rf"deadline of {deadline:g} s"):
                async for _ in stream:
                    pass
            if triton.has(stream.request_id):
                break
        return stream

    play(scene)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_cancel_before_the_first_chunk(triton: Triton, protocol: str) -> None:
    async def scene() -> None:
        async with AsyncDrafthouseClient(
            triton.address(protocol), protocol=protocol, model="words"
        ) as client:
            stream = client.stream("silent")
            asyncio.get_running_loop().call_later(0.1, stream.cancel)
            with pytest.raises(errors.Cancelled):
                async for _ in stream:
                    pass

    asyncio.run(scene())


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_many_requests_run_at_once_and_keep_apart(triton: Triton, protocol: str) -> None:
    async def scene() -> list[str]:
        async with AsyncDrafthouseClient(triton.address(protocol), protocol=protocol) as client:
            requests = (client.generate(f"endless {number}", max_tokens=20) for number in range(32))
            return [result.text for result in await asyncio.gather(*requests)]

    assert asyncio.run(scene()) == [f"endless {number} " * 10 for number in range(32)]
