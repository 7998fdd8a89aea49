"""Whatever answers at the address, the client takes in no more than an answer can have, and says so."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from client import AsyncDrafthouseClient, DrafthouseClient, errors

METADATA = (
    b'{"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}, '
    b'{"name": "max_tokens", "datatype": "INT32", "shape": [1]}]}'
)
ENDLESS = b"x" * 2**16


@contextmanager
def endless(*, generation: bool, status: bytes) -> Iterator[str]:
    """An HTTP server that answers questions about a model, or only the generation, without end."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with connection:
            asked = connection.recv(2**16)
            if generation and asked.startswith(b"GET"):
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(METADATA)}\r\n\r\n".encode()
                connection.sendall(head + METADATA)
                return
            try:
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n\r\ndata: ")
                for _ in itertools.count():
                    connection.sendall(ENDLESS)
            except OSError:
                return  # the client has had enough

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    ("generation", "status"), [(False, b"200 OK"), (True, b"200 OK"), (True, b"400 Bad Request")]
)
def test_an_endless_answer_is_cut_off(
    asynchronous: bool, generation: bool, status: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "MOST_BYTES", 2**20)

    async def ask(address: str) -> None:
        async with AsyncDrafthouseClient(address, protocol="http") as client:
            await client.generate("x", deadline=30)

    with (
        endless(generation=generation, status=status) as address,
        pytest.raises(errors.ServerError, match="more than 1 MiB"),
    ):
        if asynchronous:
            asyncio.run(ask(address))
        else:
            with DrafthouseClient(address, protocol="http") as client:
                client.generate("x", deadline=30)


def test_the_time_to_try_again_is_read() -> None:
    told = errors.from_server(
        "in ensemble 'ensemble', the queue is full: 8 run and 6 wait; try again in 12 s"
    )
    assert isinstance(told, errors.QueueFull) and told.retry_after == 12
    silent = errors.from_server("Exceeds maximum queue size")
    assert isinstance(silent, errors.QueueFull) and silent.retry_after is None
    stopping = errors.from_server("the server is stopping and takes no new requests; try again later")
    assert isinstance(stopping, errors.ServerUnavailable)
