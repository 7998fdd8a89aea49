"""A Triton server for the client's tests, started once and always stopped, and clients of every kind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import AsyncDrafthouseClient, DrafthouseClient
from tests.client.blocking import Blocking
from tests.client.triton_server import Triton, start_triton

Connect = Callable[..., Any]


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    server = start_triton(tmp_path_factory.mktemp("triton"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def start_another(tmp_path: Path) -> Iterator[Callable[[], Triton]]:
    """Starts a server that a test may kill."""
    started: list[Triton] = []

    def start() -> Triton:
        started.append(start_triton(tmp_path / f"triton{len(started)}"))
        return started[-1]

    yield start
    for server in started:
        server.kill()


@pytest.fixture(params=["grpc", "http", "grpc-asyncio", "http-asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of one kind: `connect(triton_or_address, model=...)`."""
    protocol, _, flavour = request.param.partition("-")
    loop = asyncio.new_event_loop() if flavour else None
    opened: list[Any] = []

    def connect(server: Triton | str, **settings: Any) -> Any:
        address = server if isinstance(server, str) else server.address(protocol)
        if loop is None:
            opened.append(DrafthouseClient(address, protocol=protocol, **settings))
        else:
            opened.append(Blocking(AsyncDrafthouseClient(address, protocol=protocol, **settings), loop))
        return opened[-1]

    yield connect
    for client in opened:
        client.close()
    if loop is not None:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@pytest.fixture
def client(connect: Connect, triton: Triton) -> Any:
    """A client of each kind, of the ensemble."""
    return connect(triton)
